"""SLURM: batch scripts from a template, submitted with a snapshot of the code and the configuration.

submission = Submission(Path("runs/mine"))
command = ["fit", "--config", str(submission.configuration("fit"))]
script = submission.script(SlurmSettings(nodes=2), command, saves_itself=True)
job = submission.submit(script, "fit", resolve("fit", ["--config", "mine.yaml"]))
"""

from megalit.launch.script import Array, Script, SlurmSettings
from megalit.launch.submission import Job, Submission, resolve

__all__ = ["Array", "Job", "Script", "SlurmSettings", "Submission", "resolve"]
