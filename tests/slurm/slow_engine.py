"""An engine for jobs that are to be met at work: one completion after the other."""

from megalit.synthesis.engines.scripted import Scripted


class OneByOne(Scripted):
    in_flight = 1
