"""The resolved configuration of a ``megalit fit`` that other verbs start."""

import argparse
from collections.abc import Sequence
from typing import Any

from megalit.cli.parsing import is_union_error, one_line
from megalit.cli.training import PARSING, TrainingCLI, quiet
from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StreamDataModule


class ParsedFit(TrainingCLI):
    """Parses what ``fit`` parses, and makes nothing of it."""

    def instantiate_classes(self) -> None:
        pass


def fit_config(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``megalit fit`` would save as the run's configuration.

    Raises:
        UserError: a key that is not known, or a value that cannot be used.
    """
    quiet()
    try:
        return ParsedFit(LanguageModel, StreamDataModule, run=False, args=list(arguments), **PARSING).plain_config
    except argparse.ArgumentError as error:
        raise UserError(one_line(error)) from error
    except ValueError as error:
        if not is_union_error(error):
            raise
        raise UserError(one_line(error)) from error
