"""The verbs that make data: ``corpus`` and ``tokenize``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalit.cli.commands import parse
from megalit.cli.prepare import TokenizerSettings, ensure_corpus, ensure_stores
from megalit.corpus.build import CorpusSettings
from megalit.corpus.contamination import GuardSettings
from megalit.corpus.tables import Corpus

CORPUS_HELP = """
Each row of an input has 'id' and 'text' and may have
  generations: a list of {style, text}: all synthetic versions of the document
  thoughts: a list of {offset, text}: rationales, each with the character offset where it belongs
A row with the text of an earlier one is removed, with its generations and thoughts.
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
        generations: folders that `megalit generate` wrote; a store for each, and a further one for what came later.
        tokenizer: encodes all of them.
        guard: looks for passages of validation documents in the training text.
    """

    corpus: str = "data/corpus"
    output: str = "data/stores"
    generations: list[str] = field(default_factory=list)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)


def corpus(verb: str, arguments: Sequence[str]) -> None:
    """``megalit corpus``."""
    command = parse(verb, CorpusCommand, arguments, CORPUS_HELP)
    output = Path(command.output)
    settings = CorpusSettings(**{name: getattr(command, name) for name in CorpusSettings.__dataclass_fields__})
    ensure_corpus(settings, output)
    print(output)


def tokenize(verb: str, arguments: Sequence[str]) -> None:
    """``megalit tokenize``."""
    command = parse(verb, TokenizeCommand, arguments)
    output = Path(command.output)
    generations = [Path(name) for name in command.generations]
    ensure_stores(Corpus(Path(command.corpus)), generations, command.tokenizer, command.guard, output)
    print(output)
