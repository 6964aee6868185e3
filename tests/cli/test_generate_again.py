"""``megalit generate`` on a folder that has seen it before: killed, refused, given twice, or asked for less."""

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_sets import DataSet
from forks import fork
from running import Run, start

from megalit.files import lock
from megalit.synthesis.engines import EngineError, Scripted, TooLongError
from megalit.synthesis.requests import Completion, Request, Sampling

CONFIG = """
corpus: CORPUS
output: out
generations: 3
recipe: Rephrase
engine: {class_path: Scripted, init_args: {seconds: SECONDS}}
cleaning: {copy_threshold: null}
"""


@pytest.fixture
def config(data_set: DataSet, tmp_path: Path) -> Path:
    """A configuration of a scripted engine on a finished corpus."""
    path = tmp_path / "generate.yaml"
    path.write_text(CONFIG.replace("CORPUS", str(data_set.corpus.folder)).replace("SECONDS", "0"))
    return path


TABLE_IS_KILLED = """
import os, signal, sys
from megalit.cli import main
from megalit.synthesis import compaction

compaction._row = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_tables_that_were_half_written_do_not_pile_up(config: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(TABLE_IS_KILLED)
    for _ in range(2):
        victim = fork(tmp_path / "killed.py", "generate", "--config", config, folder=tmp_path)
        assert victim.wait(120) == -signal.SIGKILL
        assert len(list(Path("out").glob(".generations.parquet.*.tmp"))) == 1
    assert run("generate", "--config", config) == 0
    assert not list(Path("out").glob(".*.tmp"))


class DiesOfTheSignal(Scripted):
    """Its processes get the signal, too, and say so before the cancelled requests have ended."""

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise EngineError("the engine has died") from None
        raise AssertionError("nobody was told to end")


class DiesFirst(Scripted):
    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        raise EngineError("the engine has died")


class DiesWhileItIsLoaded(Scripted):
    async def __aenter__(self) -> "DiesWhileItIsLoaded":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        raise EngineError("the engine cannot be loaded")


class DiesByItself(Scripted):
    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        raise EngineError("the engine has died")


@pytest.mark.parametrize("engine", [DiesOfTheSignal, DiesFirst, DiesWhileItIsLoaded])
def test_an_engine_that_dies_of_the_same_signal_is_a_preemption(
    config: Path, run: Run, capsys: pytest.CaptureFixture[str], engine: type[Scripted]
) -> None:
    """Code 130 brings a job back into the queue, 2 does not."""
    assert run("generate", "--config", config, "--engine", f"{__name__}.{engine.__name__}") == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    assert json.loads(Path("out/status/0-of-1.json").read_text())["state"] == "stopped"
    assert run("generate", "--config", config, "--engine", f"{__name__}.DiesByItself") == 2
    assert "the engine has died" in capsys.readouterr().err


def test_a_shard_is_made_by_one_process(config: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("seconds: 0", "seconds: 0.5"))
    first = start("generate", "--config", config, folder=config.parent)
    while not list(Path("out/journal").glob("*.jsonl")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    assert run("generate", "--config", config) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "another process makes shard 0/1 of out: wait for it, or help it" in said
    assert run("generate", "--config", config, "--shard", "1/3") == 0  # another division helps
    assert first.wait(60) == 0


def test_a_job_that_slurm_has_started_again_waits_for_its_lock(
    config: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system may hold that of a node that died for a while."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run("generate", "--config", config, "--shard", "1/2") == 0
    is_held = threading.Event()

    def hold() -> None:
        with lock(Path("out/journal/shard-0-of-2")):
            is_held.set()
            time.sleep(0.5)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    assert run("generate", "--config", config, "--shard", "0/2") == 0
    holder.join()


class Served(Scripted):
    """A server, of whose context length this program knows nothing."""

    longest = 500

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        if len(request.messages[-1].content) > self.longest:
            raise TooLongError("too long")
        return await super().complete(request, sampling, seed)


def test_what_a_server_refused_is_tried_again_when_asked_for(
    config: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--config", str(config), "--engine", f"{__name__}.Served"]

    def rows() -> int:
        return int(pq.read_metadata("out/generations.parquet").num_rows)

    assert run(*command) == 0
    some = rows()
    assert "generations were refused by the model" in capsys.readouterr().err
    # With no other context they are refused again, and the work still has an end.
    assert run(*command, "--retry_refused") == 0
    assert rows() == some
    monkeypatch.setattr(Served, "longest", 100_000)
    capsys.readouterr()
    assert run(*command) == 0
    said = capsys.readouterr().err
    assert "is finished" in said
    assert "--retry_refused tries them again" in said
    assert rows() == some
    assert run(*command, "--retry_refused", "--shard", "0/2") == 0
    assert rows() > some
    assert run(*command, "--retry_refused", "--shard", "1/2") == 0
    report = json.loads(Path("out/report.json").read_text())
    assert rows() == report["accepted"] > some
    assert report["given_up"] == 0
    capsys.readouterr()
    assert run(*command) == 0
    assert "refused" not in capsys.readouterr().err


def test_nothing_is_taken_out_of_a_finished_table(config: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--config", str(config)]
    assert run(*command) == 0
    before = Path("out/generations.parquet").read_bytes()
    capsys.readouterr()
    assert run(*command, "--generations", "2") == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "out holds 3 generations of each document, and 2 are asked for: give --generations 3 or more" in said
    assert Path("out/generations.parquet").read_bytes() == before
    assert run(*command, "--generations", "4") == 0

    # A recipe that decides by itself how many it makes has no fewer.
    thoughts = [*command, "--output", "thoughts", "--recipe", "LatentThoughts"]
    assert run(*thoughts) == 0
    assert run(*thoughts, "--generations", "1") == 0

    samples = [*command, "--output", "samples", "--recipe", "Unconditional"]
    assert run(*samples, "--total_tokens", "500") == 0
    before = Path("samples/generations.parquet").read_bytes()
    capsys.readouterr()
    for fewer, said in (("--total_tokens", "tokens, and 200 are asked for"), ("--generations", "samples, and 2 are")):
        assert run(*samples, fewer, "200" if "tokens" in fewer else "2") == 2
        assert said in capsys.readouterr().err
    assert run(*samples, "--total_tokens", "495") == 0  # as many samples
    assert Path("samples/generations.parquet").read_bytes() == before
    assert run(*samples, "--total_tokens", "600") == 0


def test_shards_of_samples_need_to_run_once(config: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--config", str(config), "--recipe", "Unconditional", "--total_tokens", "900"]
    for number in (2, 0, 3, 1):
        capsys.readouterr()
        assert run(*command, "--shard", f"{number}/4") == 0
        assert ("other shards have samples still to make" in capsys.readouterr().err) == (number != 1)
    tokens = pq.read_table("out/generations.parquet", columns=["tokens"]).column(0).to_pylist()
    assert sum(tokens[:-1]) < 900 <= sum(tokens)
    statuses = [json.loads(path.read_text()) for path in Path("out/status").glob("*.json")]
    assert sum(status["tokens"] for status in statuses) < 1.2 * 900
