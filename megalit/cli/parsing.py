"""Errors of the configuration parser, in one line."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager

from megalit.errors import UserError

# What the parser says around the reason itself.
_FRAME = re.compile(
    r"Parser key|Problem with given class_path|Does not validate against|Subtypes:|Errors:|Given value|"
    r"Expected a <class 'NoneType'>|Expected a path but"
)
_ADVICE = "`--help` and `--print_config` show what can be set"


@contextmanager
def in_one_line() -> Iterator[None]:
    """Let what the parser refuses end in one line.

    Raises:
        UserError: a key that is not known, or a value that cannot be used.
    """
    try:
        yield
    except argparse.ArgumentError as error:
        raise UserError(_one_line(error)) from error
    except ValueError as error:
        if not _is_union_error(error):
            raise
        raise UserError(_one_line(error)) from error


def _is_union_error(error: Exception) -> bool:
    """Whether the parser wrapped what a class said when it was made (it does so for optional classes)."""
    return str(error).startswith("Does not validate against any of the Union subtypes")


def _one_line(error: Exception) -> str:
    """The innermost reason of a parser's error, with the key that it is about.

    The parser nests reasons by indentation, outermost first, so the last line of its own words says what is
    wrong, and the keys on the way to it make up the full key.
    """
    text = str(error)
    lines = [line.strip(" -\t") for line in text.splitlines()]
    reasons = [line for line in lines if line and not _FRAME.match(line)]
    reason = reasons[-1] if reasons else lines[0]
    if _is_union_error(error):
        return reason  # a class of ours has said it all
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', text))
    reason = re.sub(r"Expected a dot import path string: (\w+)", r"there is no class '\1' to choose", reason)
    reason = re.sub(r"<class '(\w+)'>|typing\.(Literal\[.*?\])", r"\1\2", reason)
    option = re.match(r"Option '([\w.]+)' is not accepted", reason)
    if option:
        key, reason = f"{key}.{option.group(1)}", "there is no such setting"
    return f"{f'{key}: ' if key else ''}{reason}; {_ADVICE}"
