"""The verbs that make data: ``corpus`` and ``tokenize``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from megalit.cli import VERBS
from megalit.cli.parsing import one_line
from megalit.cli.prepare import TokenizerSettings, ensure_corpus, ensure_stores
from megalit.corpus.build import CorpusSettings
from megalit.corpus.contamination import GuardSettings
from megalit.corpus.tables import Corpus
from megalit.errors import UserError

T = TypeVar("T")

CORPUS_HELP = """
Each row of an input has 'id' and 'text' and may have
  generations: a list of {style, text}: synthetic versions of the document
  thoughts: a list of {offset, text}: rationales, each with the character offset where it belongs
"""


@dataclass(frozen=True)
class CorpusCommand(CorpusSettings):
    """Read documents from files, hold some out, write a corpus (Parquet).

    Attributes:
        output: folder of the corpus; it appears when it is complete.
    """

    output: str = "data/corpus"


@dataclass(frozen=True)
class TokenizeCommand:
    """Turn a corpus into token stores, ready for ``megalit fit --data.stores``.

    Attributes:
        corpus: folder that `megalit corpus` wrote.
        output: folder of the stores; each store appears when it is complete and verified.
        tokenizer: encodes all of them.
        guard: looks for passages of validation documents in the training text.
    """

    corpus: str = "data/corpus"
    output: str = "data/stores"
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)


def corpus(verb: str, arguments: Sequence[str]) -> None:
    """``megalit corpus``."""
    command = _parse(verb, CorpusCommand, arguments, CORPUS_HELP)
    output = Path(command.output)
    settings = CorpusSettings(**{name: getattr(command, name) for name in CorpusSettings.__dataclass_fields__})
    ensure_corpus(settings, output)
    print(output)


def tokenize(verb: str, arguments: Sequence[str]) -> None:
    """``megalit tokenize``."""
    command = _parse(verb, TokenizeCommand, arguments)
    output = Path(command.output)
    ensure_stores(Corpus(Path(command.corpus)), [], command.tokenizer, command.guard, output)
    print(output)


def _parse(verb: str, command: type[T], arguments: Sequence[str], epilog: str | None = None) -> T:
    parser = ArgumentParser(
        prog=f"megalit {verb}",
        description=VERBS[verb].summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with these settings")
    parser.add_class_arguments(command)
    try:
        parsed: Namespace = parser.parse_args(list(arguments))
        made: T = command(
            **{key: value for key, value in parser.instantiate_classes(parsed).items() if key != "config"}
        )
    except argparse.ArgumentError as error:
        raise UserError(one_line(error)) from error
    return made
