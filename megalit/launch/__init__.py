"""SLURM: batch scripts from a template, submitted with a snapshot of the code and the configuration.

job = submit(SlurmSettings(nodes=2), ["fit", "--config", "mine.yaml"], Path("runs/mine"))
"""

from megalit.launch.script import Array, Script, SlurmSettings
from megalit.launch.submission import Job, Submission, resolve, submit

__all__ = ["Array", "Job", "Script", "SlurmSettings", "Submission", "resolve", "submit"]
