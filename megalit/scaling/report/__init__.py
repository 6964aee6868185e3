"""One page that shows what a set of runs found: ``megalit report``.

``reading`` finds the records, ``study`` joins seeds and says which settings can be compared, a module each draws what
there is to see (``trends``, ``windows``, ``ensembles``, ``efficiency``, ``published``), ``page`` writes.
"""

from megalit.scaling.report.page import PAGE, write_report
from megalit.scaling.report.reading import Findings, find_runs

__all__ = ["PAGE", "Findings", "find_runs", "write_report"]
