"""Verbs that are one dataclass of settings: parsing them from flags and a configuration file."""

import argparse
from collections.abc import Sequence
from typing import TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from megalit.cli import VERBS
from megalit.cli.parsing import in_one_line

T = TypeVar("T")


def parse(verb: str, command: type[T], arguments: Sequence[str], epilog: str | None = None) -> T:
    """The settings of a verb.

    Raises:
        UserError: a flag or key that is not known, or a value that cannot be used.
    """
    parser = ArgumentParser(
        prog=f"megalit {verb}",
        description=VERBS[verb.split()[0]].summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with these settings")
    parser.add_class_arguments(command)
    with in_one_line():
        parsed: Namespace = parser.parse_args(list(arguments))
        made: T = command(
            **{key: value for key, value in parser.instantiate_classes(parsed).items() if key != "config"}
        )
    return made


def gather(arguments: Sequence[str], flag: str, leading: bool = False) -> list[str]:
    """Several values of a flag, or several flags, as the one list that the parser takes.

    With ``leading``, what stands in front of all flags belongs to it, too.
    """
    values, others = [], []
    taking = leading
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("-"):
            taking = name == flag
            if not taking:
                others.append(argument)
            elif value:
                values.append(value)
        elif taking:
            values.append(argument)
        else:
            others.append(argument)
    if not values:
        return others
    # A list that is written as one is passed on.
    written = values[0] if len(values) == 1 and values[0].startswith("[") else "[" + ", ".join(map(repr, values)) + "]"
    return [*others, f"{flag}={written}"]
