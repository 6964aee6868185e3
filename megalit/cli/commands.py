"""Verbs that are one dataclass of settings: parsing them from flags and a configuration file."""

import argparse
import json
from collections.abc import Sequence
from typing import TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from megalit.cli import VERBS
from megalit.cli.parsing import is_union_error, one_line
from megalit.errors import UserError

T = TypeVar("T")


def parse(
    verb: str,
    command: type[T],
    arguments: Sequence[str],
    epilog: str | None = None,
    positional: str | None = None,
) -> T:
    """The settings of a verb.

    Args:
        verb: its name.
        command: dataclass of its settings.
        arguments: what was given on the command line.
        epilog: text below the help.
        positional: a list among the settings whose values may be given without its flag, before all flags.

    Raises:
        UserError: a flag or key that is not known, or a value that cannot be used.
    """
    parser = ArgumentParser(
        prog=f"megalit {verb}",
        description=VERBS[verb].summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with these settings")
    parser.add_class_arguments(command)
    given = list(arguments)
    if positional is not None:
        parser.usage = f"megalit {verb} {positional.upper()} ... [options]"
        count = next((place for place, argument in enumerate(given) if argument.startswith("-")), len(given))
        given = [*([f"--{positional}", json.dumps(given[:count])] if count else []), *given[count:]]
    try:
        parsed: Namespace = parser.parse_args(given)
        made: T = command(
            **{key: value for key, value in parser.instantiate_classes(parsed).items() if key != "config"}
        )
    except argparse.ArgumentError as error:
        raise UserError(one_line(error)) from error
    except ValueError as error:
        if not is_union_error(error):
            raise
        raise UserError(one_line(error)) from error
    return made
