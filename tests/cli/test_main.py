"""The entry point."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import Run

from megalit.cli import VERBS
from megalit.cli.parsing import in_one_line
from megalit.errors import UserError


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from megalit.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'lightning', 'numpy', 'jsonargparse', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert f"\n  {verb} " in result.stdout


def test_an_unknown_verb_lists_the_known_ones(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train") == 2
    assert "'train' is no verb" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["corpus", "tokenize"])
def test_each_verb_prints_its_configuration(verb: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--print_config") == 0
    assert "output" in yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "inspect"])
def test_training_verbs_print_their_configuration(
    verb: str, run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verb, "--config", small, "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["shape"] == "nano"


def test_a_bug_is_not_dressed_up_as_a_user_error() -> None:
    """Only what a user can mend is caught; anything else keeps its traceback."""
    code = (
        "from megalit import cli\n"
        "cli.VERBS['corpus'] = cli.Verb('', 'megalit.cli:_broken')\n"
        "def broken(verb, arguments): raise ZeroDivisionError\n"
        "cli._broken = broken\n"
        "cli.main(['corpus'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_a_file_system_that_is_read_only_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(verb: str, arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/c")

    monkeypatch.setattr("megalit.cli.data.corpus", write)
    assert run("corpus") == 2
    said = "megalit: error: the file system is read-only (writing /data/c): choose a folder that may be written\n"
    assert capsys.readouterr().err == said


def test_parser_errors_become_one_line() -> None:
    error = "Parser key \"data\":\n  Errors:\n    - Expected a <class 'NoneType'>\n    - Option 'x' is not accepted"
    with pytest.raises(UserError, match=r"^data\.x: there is no such setting"), in_one_line():
        raise argparse.ArgumentError(None, error)


def test_errors_that_are_not_the_parsers_pass_through() -> None:
    with pytest.raises(ValueError, match="^bad tensor$"), in_one_line():
        raise ValueError("bad tensor")
