"""``megalit prepare``: what ``fit`` would build before it trains, and no more."""

from collections.abc import Sequence

from megalit.cli.fit_config import WithoutTrainer, parse_fit
from megalit.errors import UserError


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit prepare``, with the configuration of a run."""
    cli = parse_fit(WithoutTrainer, arguments)
    if cli.config_init.prepare.folder is None:
        raise UserError(
            "prepare.folder is not set, so there is nothing to build: name it, or give `megalit fit` at once"
        )
    cli.prepare_data(cli.config_init)
    print(cli.config_init.data.stores)
