"""What exists is complete."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megalit.files import lock, new_folder, remove_leftovers, write_atomic


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, lambda file: file.write(b"old"))

    def fail(file) -> None:  # type: ignore[no-untyped-def]
        file.write(b"new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import os, signal, sys; from pathlib import Path; from megalit.files import write_atomic\n"
        "write_atomic(Path(sys.argv[1]), lambda file: os.kill(os.getpid(), signal.SIGKILL))"
    )
    for target in (path, tmp_path / "f.other"):
        assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".f.????????.tmp")
    others = {tmp_path / name for name in (".f.mine.tmp", ".f.tmp", ".g.abcdefgh.tmp", "f.abcdefgh.tmp")}
    for other in others:
        other.write_text("x")
    others |= set(tmp_path.glob(".f.other.*.tmp"))
    assert len(others) == 5
    remove_leftovers(path)
    assert left not in others
    assert set(tmp_path.iterdir()) == others


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    write_atomic(tmp_path / "f", lambda file: file.write(b"x"))
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "made") as folder:
        (folder / "whole").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "whole").read_text() == "x"


def test_a_lock_is_freed_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from megalit.files import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited: list[bool] = []

    def kill() -> None:
        waited.append(True)
        os.kill(holder.pid, signal.SIGKILL)

    with lock(tmp_path / "x", waiting=kill):
        assert waited == [True]
    holder.wait()
