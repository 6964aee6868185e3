"""``megalit prepare``: what ``fit`` would build before it trains, and no more."""

import argparse
from collections.abc import Sequence
from typing import Any

from megalit.cli.parsing import is_union_error, one_line
from megalit.cli.training import PARSING, TrainingCLI, quiet
from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StreamDataModule


class PrepareCLI(TrainingCLI):
    """Parses what ``fit`` parses and builds the data only."""

    verb = "prepare"

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit prepare``, with the configuration of a run."""
    quiet()
    try:
        cli = PrepareCLI(LanguageModel, StreamDataModule, run=False, args=list(arguments), **PARSING)
    except argparse.ArgumentError as error:
        raise UserError(one_line(error)) from error
    except ValueError as error:
        if not is_union_error(error):
            raise
        raise UserError(one_line(error)) from error
    if cli.config_init.prepare.folder is None:
        raise UserError(
            "prepare.folder is not set, so there is nothing to build: name it, or give `megalit fit` at once"
        )
    cli.prepare_data(cli.config_init)
    print(cli.config_init.data.stores)
