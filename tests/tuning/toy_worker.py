"""A worker on the toy ridge as a process of its own: ``toy_worker.py FOLDER [SECONDS]``.

Each trial it begins is a line in FOLDER/asked.
"""

import os
import sys
from pathlib import Path

from surfaces import PAPER, Toy, open_study, ridge, sweep

from megalit.tuning.results import Unit
from megalit.tuning.space import Space
from megalit.tuning.trials import Outcome, Stopped


class Loud(Toy):
    def __call__(self, unit: Unit, space: Space, slot: int, stopped: Stopped) -> Outcome:
        with (folder / "asked").open("a") as file:
            file.write(f"{os.getpid()} {unit.point} {unit.seed}\n")
        return super().__call__(unit, space, slot, stopped)


folder = Path(sys.argv[1])
sweep(open_study(folder, PAPER), Loud(ridge, float(sys.argv[2])))
