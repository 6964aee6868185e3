"""The configuration of a ``megalit fit`` for verbs that train nothing themselves."""

from collections.abc import Sequence
from typing import Any, TypeVar

from megalit.cli.parsing import in_one_line
from megalit.cli.training import PARSING, TrainingCLI, quiet
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StreamDataModule


class WithoutTrainer(TrainingCLI):
    """Parses what ``fit`` parses, and makes model and data but no trainer."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


class ParsedFit(TrainingCLI):
    """Parses what ``fit`` parses, and makes nothing of it."""

    def instantiate_classes(self) -> None:
        pass


CLI = TypeVar("CLI", bound=TrainingCLI)


def parse_fit(kind: type[CLI], arguments: Sequence[str]) -> CLI:
    """Parse what ``fit`` parses, and run nothing.

    Raises:
        UserError: a key that is not known, or a value that cannot be used.
    """
    quiet()
    with in_one_line():
        return kind(LanguageModel, StreamDataModule, run=False, args=list(arguments), **PARSING)


def fit_config(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``megalit fit`` would save as the run's configuration (raises as :func:`parse_fit`)."""
    return parse_fit(ParsedFit, arguments).plain_config
