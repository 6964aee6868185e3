"""A real SLURM of two nodes on one machine, over loopback: no systemd, no cgroups, no accounting.

Needs Debian's ``slurm-wlm`` (built with --enable-multiple-slurmd) and ``munge``. Everything lies in one folder, and
daemons, job steps and folder go when the test session goes, however it ends.

    with MiniSlurm() as slurm:
        slurm.out("srun", "-N2", "hostname")
"""

import ctypes
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
NODES = ("127.0.0.11", "127.0.0.12")  # distinct names that resolve without a line in /etc/hosts
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE")

# Why the less obvious lines: Lightning takes MASTER_PORT from the job id, so each cluster has its own FirstJobId; a
# requeued job may start again only after cred_expire; config_overrides lets nodes claim more cores than there are;
# preemption sends a job its own --signal at the start of GraceTime.
CONFIGURATION = """\
ClusterName=mini
FirstJobId={first_job}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
{communication}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=1
JobRequeue=1
KillWait=5
SlurmdTimeout=30
MinJobAge=600
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=127.0.0.[11-12] NodeHostname=localhost NodeAddr=127.0.0.1 Port={nodes} CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""

# Waits until the test session is gone (its end of the pipe closes), then ends what is left of the cluster.
SWEEPER = """\
import os, pathlib, shutil, signal, sys
sys.stdin.buffer.read()
mark, own = f"SLURM_CONF={sys.argv[1]}/slurm.conf".encode(), os.getpid()
for _ in range(3):
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != own and mark in (process / "environ").read_bytes().split(b"\\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "the cluster's daemons need root"


class MiniSlurm:
    """The cluster; a context manager."""

    def __init__(self) -> None:
        # munged is another user and has to enter every folder above its socket, whose path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="mslurm."))
        self.folder.chmod(0o755)
        for name in ("munge", "state", "spool", "log", "run"):
            (self.folder / name).mkdir(mode=0o755)
        controller, first, last = _free_ports(3)
        self.configuration = self.folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=self.folder,
                user=getpass.getuser(),
                controller=controller,
                nodes=f"{first}-{last}",
                first_job=random.randrange(100, 900) * 10 + 1,
                communication="CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if _is_loopback() else "",
            )
        )
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"SLURM_CONF": str(self.configuration), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._sweeper = subprocess.Popen(
            [sys.executable, "-S", "-c", SWEEPER, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )

    # Commands --------------------------------------------------------------------------------------

    def run(self, *command: object, check: bool = True, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run one of SLURM's commands."""
        words = [str(word) for word in command]
        environment = {**self.environment, **variables}
        return subprocess.run(words, env=environment, text=True, capture_output=True, check=check, timeout=60)

    def out(self, *command: object, **variables: str) -> str:
        """What one of SLURM's commands prints."""
        return self.run(*command, **variables).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        shown = self.out("scontrol", "-o", "show", "job", job)
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def wait(self, job: str, states: Iterable[str] = OVER, seconds: float = 300) -> str:
        """The state of a job once it is one of ``states``."""
        states = tuple(states)
        until(
            lambda: self.job(job)["JobState"] in states, seconds, lambda: f"job {job}: {self.job(job)}\n{self.logs()}"
        )
        return self.job(job)["JobState"]

    def cancel_all(self) -> None:
        """End all jobs and bring nodes back that were taken down."""
        for force in (("--signal=KILL", "--full"), ()):
            self.run("scancel", *force, "-u", getpass.getuser(), check=False)
        for node in NODES:
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        paths = sorted((self.folder / "log").iterdir())
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    # Daemons ---------------------------------------------------------------------------------------

    def __enter__(self) -> "MiniSlurm":
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        names = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={munge}/{name}" for option, name in names.items()]
        self._start("munged", "munged", "-F", "--num-threads=2", *places, user="munge")
        until((munge / "sock").exists, 30, self.logs)
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", str(self.configuration))
        for node in NODES:
            self._start(f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", str(self.configuration))
        self.until_idle()

    def until_idle(self) -> None:
        """Wait until both nodes are free and may be used."""
        idle = ("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D")
        until(lambda: self.run(*idle, check=False).stdout.strip() == str(len(NODES)), 60, self.logs)

    def _start(self, name: str, *command: str, user: str | None = None) -> None:
        options = {"user": user, "group": user, "extra_groups": []} if user else {}
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment,
                cwd=self.folder,
                preexec_fn=_die_with_parent,
                start_new_session=True,
                **options,  # type: ignore[call-overload]
            )

    def __exit__(self, *_: object) -> None:
        # In this order: daemons first, so that none starts a step again; the sweeper then ends what is left.
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        assert self._sweeper.stdin is not None
        self._sweeper.stdin.close()
        self._sweeper.wait(30)


def until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    """Wait for a condition; fail with what is told after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(told())
        time.sleep(0.05)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    """Ports that are free and follow each other."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        servers: list[socket.socket] = []
        try:
            servers += [socket.create_server(("127.0.0.1", first + number)) for number in range(count)]
        except OSError:
            continue
        finally:
            for server in servers:
                server.close()
        return list(range(first, first + count))


def _is_loopback() -> bool:
    """Whether this machine's own name is the loopback address, which daemons may then be bound to."""
    try:
        return socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
    except OSError:
        return False
