"""Tuning to a locally optimal point of a grid, by any number of workers that share one study.

A sweep's state is an Optuna study in a journal file; a trial is an ordinary ``megalit fit``.
"""

from megalit.tuning.certificate import Certificate, certify, is_certified
from megalit.tuning.results import Results
from megalit.tuning.samplers import ConvexSampler, ExhaustiveSampler, ShuffledSampler
from megalit.tuning.space import Axis, Space

__all__ = [
    "Axis",
    "Certificate",
    "ConvexSampler",
    "ExhaustiveSampler",
    "Results",
    "ShuffledSampler",
    "Space",
    "certify",
    "is_certified",
]
