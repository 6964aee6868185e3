"""Failures that a user can cause and mend."""


class UserError(Exception):
    """A mistake in the input or the configuration.

    The message is one line that names the cause and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


def first_line(text: str) -> str:
    """The first line that is not empty, or nothing."""
    return next(iter(text.strip().splitlines()), "")


def reason(error: BaseException) -> str:
    """What an error of another program says, in one line; its type where it says nothing."""
    return first_line(str(error)) or type(error).__name__


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(
        f"{purpose} needs the package '{package}', which is not installed: "
        f"run `pip install 'megalit[{extra}]'` or `uv sync --extra {extra}`"
    )
