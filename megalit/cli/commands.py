"""Verbs that are one dataclass of settings: parsing them from flags and a configuration file."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import yaml
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
    switches = [f"--{part.name}" for part in fields(command) if isinstance(part.default, bool)]  # type: ignore[arg-type]
    with in_one_line():
        parsed: Namespace = parser.parse_args(with_switches(arguments, switches))
        made: T = command(
            **{key: value for key, value in parser.instantiate_classes(parsed).items() if key != "config"}
        )
    return made


def with_switches(arguments: Sequence[str], switches: Iterable[str]) -> list[str]:
    """The arguments with a value for each switch that stands alone, which is easier to type than ``--status true``."""
    names = set(switches)
    following = [*arguments, ""][1:]
    return [
        f"{argument}=true" if argument in names and not isinstance(_loaded(after), bool) else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def gather(arguments: Sequence[str], flag: str, leading: bool = False) -> list[str]:
    """Several values of a flag, or several flags, as the one list that the parser takes.

    With ``leading``, what stands in front of all flags belongs to it, too. A flag without a value is left for the
    parser to refuse.
    """
    values: list[Any] = []
    others: list[str] = []
    taking = leading
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if argument.startswith("-"):
            taking = name in (flag, f"{flag}+")
            behind = arguments[place + 1 : place + 2]
            if taking and value:
                values += _listed(value)
            elif not taking or "=" in argument or not behind or behind[0].startswith("-"):
                others.append(argument)
        elif taking:
            values += _listed(argument)
        else:
            others.append(argument)
    return [*others, f"{flag}={json.dumps(values)}"] if values else others


def _listed(value: str) -> list[Any]:
    """A value that is written as a list, or a list of that one value; a pattern such as ``[ab]*`` is no list."""
    loaded = _loaded(value) if value.startswith("[") else value
    return loaded if isinstance(loaded, list) else [value]


def _loaded(value: str) -> Any:
    """What the parser reads a value as; one that is no YAML is a text."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value
