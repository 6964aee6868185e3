"""Prompts: Jinja templates in files, each with a version.

The first line of a template is a comment with its version, ``{# version: 1 #}``. A user's own template is named by
its path. What a template says is part of a generation's identity, so a changed prompt never passes for the old one.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError

from megalit.errors import UserError
from megalit.files import digest

_FOLDER = Path(__file__).parent
_VERSION = re.compile(r"\{#-?\s*version:\s*(\S+?)\s*-?#\}\s*")
_environment = Environment(undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False)


@cache
def prompt(name: str) -> "Prompt":
    """A template, read once in a process: what it says does not change under a recipe that is at work."""
    return Prompt(name)


def names() -> list[str]:
    """Templates that come with megalit."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


@dataclass(frozen=True)
class Prompt:
    """A template.

    Attributes:
        name: of one that comes with megalit, or a path.

    Raises:
        UserError: no such template, or one that is no Jinja.
    """

    name: str

    def __post_init__(self) -> None:
        _ = self._template

    @cached_property
    def _template(self) -> Template:
        try:
            return _environment.from_string(_VERSION.sub("", self._text, count=1))
        except TemplateError as error:
            raise UserError(f"prompt {self.name} is no Jinja template ({error}): mend it") from error

    @property
    def _path(self) -> Path:
        shipped = _FOLDER / f"{self.name}.jinja"
        return shipped if shipped.exists() else Path(self.name).expanduser()

    @cached_property
    def _text(self) -> str:
        if not self._path.is_file():
            raise UserError(f"prompt {self.name} does not exist: give a path or one of {', '.join(names())}")
        return self._path.read_text(encoding="utf-8")

    @property
    def version(self) -> str:
        """The version that the template names, and a hash of what it says."""
        match = _VERSION.match(self._text)
        return f"{Path(self.name).stem} {match.group(1) if match else 'unnumbered'} {digest(self._text.encode())}"

    def render(self, **values: Any) -> str:
        """The prompt for these values.

        Raises:
            UserError: the template uses a name that is not among them.
        """
        try:
            return self._template.render(**values).strip()
        except TemplateError as error:
            known = ", ".join(sorted(values))
            raise UserError(f"prompt {self.name} cannot be filled in ({error}): it may use {known}") from error
