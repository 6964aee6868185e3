"""The command line: ``megalit VERB``.

This module stays light, so that ``megalit --help`` answers at once: a verb's own imports happen when
it is called. The verbs are the only place that joins corpus, synthesis and streams.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from megalit import __version__
from megalit.errors import UserError
from megalit.preemption import STOP


@dataclass(frozen=True)
class Verb:
    """One thing the program can do: what it is for, and ``module:function`` that does it.

    ``slow_start`` says that importing it takes seconds, so that there is something to see meanwhile;
    ``stoppable`` that it handles the signals with which it is told to stop, from its first moment on.
    """

    summary: str
    target: str
    slow_start: bool = False
    stoppable: bool = False

    def load(self) -> Callable[[str, Sequence[str]], None]:
        module, function = self.target.split(":")
        loaded: Callable[[str, Sequence[str]], None] = getattr(import_module(module), function)
        return loaded


VERBS: dict[str, Verb] = {
    "corpus": Verb("read documents from files, hold some out, write a corpus", "megalit.cli.data:corpus"),
    "generate": Verb("make generations of a corpus with a language model", "megalit.cli.generate:main"),
    "tokenize": Verb("turn a corpus into token stores", "megalit.cli.data:tokenize"),
    "prepare": Verb("build the data that a configuration of fit needs", "megalit.cli.preparing:main", True),
    "inspect": Verb("show what a store or a configuration's streams hold", "megalit.cli.inspect:main", True),
    "plan": Verb("say what a configuration's run will take: steps, memory, time, disk", "megalit.cli.plan:main", True),
    "fit": Verb("train a language model on a stream, or continue a run", "megalit.cli.training:main", True, True),
    "ensemble": Verb("train members, or take runs, and measure their average", "megalit.cli.ensemble:main", True, True),
    "sweep": Verb("tune settings of fit to a locally optimal point", "megalit.cli.sweep:main", True),
    "slurm": Verb("submit another verb to SLURM", "megalit.cli.slurm:main"),
    "validate": Verb("measure a run's losses on the validation suites", "megalit.cli.training:main", True),
    "test": Verb("the same as validate, through Lightning's test loop", "megalit.cli.training:main", True),
    "evaluate": Verb("measure trained models on suites and benchmarks", "megalit.cli.evaluate:main", True),
    "scaling": Verb("list run records, fit scaling laws, say what data was worth", "megalit.cli.scaling:main"),
    "report": Verb("draw what runs found, as one page and pictures", "megalit.cli.report:main"),
    "export": Verb("write a run's model in the Hugging Face format", "megalit.cli.export:main", True),
}

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit: 0 when it is done, 2 with one line on what the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0 if given else USAGE_ERROR)
    if given[0] == "--version":
        print(f"megalit {__version__}")
        sys.exit(0)
    verb = given[0]
    if verb not in VERBS:
        _fail(f"'{verb}' is no verb of megalit: choose one of {', '.join(VERBS)}")
    if VERBS[verb].slow_start and sys.stderr.isatty():
        print(f"megalit {verb}: loading torch and Lightning ...", file=sys.stderr)
    try:
        with STOP.installed() if VERBS[verb].stoppable else nullcontext():
            VERBS[verb].load()(verb, given[1:])
    except KeyboardInterrupt:
        print(f"megalit {verb}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # Whoever read the output has gone, `| head` for example; nothing more is to be written, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail_on_files(error)


def _fail_on_files(error: OSError) -> None:
    """End in one line where the file system refuses; anything else is a bug and keeps its traceback."""
    name = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        _fail(f"the disk is full or a quota is reached{_place(name)}: free space, then give the same command again")
    if error.errno == errno.EROFS:
        _fail(f"the file system is read-only{_place(name)}: choose a folder that may be written")
    if isinstance(error, FileNotFoundError):
        _fail(f"file{name} does not exist: check the path")
    if isinstance(error, PermissionError):
        _fail(f"file{name} may not be read or written: check its permissions")
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        _fail(f"path{name} is not what is needed ({os.strerror(error.errno or 0)}): choose another path")
    raise error


def _place(name: str) -> str:
    return f" (writing{name})" if name else ""


def _fail(message: str) -> NoReturn:
    print(f"megalit: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: megalit VERB [--config FILE] [--KEY VALUE ...]",
            "",
            "Data-efficient language-model pre-training on synthetic megadocs.",
            "",
            "verbs:",
            *lines,
            "",
            "`megalit VERB --help` lists a verb's settings, `--print_config` prints them as YAML.",
        ]
    )
