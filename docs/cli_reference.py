"""A hook of mkdocs: the page on the command line, written from the verbs' own parsers when the site is built.

In a clone that page says how to ask the program; here it is replaced. The hook asks each verb for its help and takes
the parser that would print it, so the page says what ``--help`` says. It also lets pages link to files of the project
outside ``docs/``: those are copied into the site.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from jsonargparse import ArgumentParser

from megalit.cli import VERBS

ROOT = Path(__file__).parents[1]
PAGE = "cli.md"

# Verbs that do several things, and what they are told to do.
ACTIONS = {"scaling": ["list", "fit", "efficiency"]}
_UNTITLED = ("options", "positional arguments")  # argparse's own groups
# Verbs that take all settings of fit, which are not said again.
_LIKE_FIT = ("prepare", "inspect", "plan", "validate", "test")
# Classes that can be chosen: heading, verb, flag, names. The first is what the others share, if it is not None.
CLASSES: list[tuple[str, str, str, str | None, list[str]]] = [
    (
        "Streams",
        "fit",
        "--data",
        "megalit.streams.StreamDataModule",
        ["RealStream", "SimpleStream", "StitchedStream", "LatentThoughtStream", "SampleStream", "MixtureStream"],
    ),
    (
        "Recipes",
        "generate",
        "--recipe",
        None,
        ["Rephrase", "CritiqueAndRevise", "LatentThoughts", "Unconditional", "TokenNoise"],
    ),
    ("Engines", "generate", "--engine", None, ["Vllm", "OpenAI", "Transformers", "Scripted"]),
    (
        "Callbacks",
        "fit",
        "--trainer.callbacks",
        None,
        ["megalit.callbacks.Ensemble", "megalit.callbacks.SelfDistillation"],
    ),
]

_INTRODUCTION = """# Command line

Written from the code: what `megalit VERB --help` says, on one page. Each verb also takes `--config FILE`, a YAML file
with the same settings (several compose, the later ones win), and `--print_config`, which prints all settings and their
values. A list is written `'[a, b]'`; a `+` behind its flag adds one value, as in
`--trainer.callbacks+=EMAWeightAveraging`. `--data StitchedStream` chooses a class; its settings are then flags like
`--data.generations`. Behind `=` stands the default.
"""


class _HelpAsked(Exception):  # noqa: N818 (it is no error)
    """Thrown where a parser would print its help."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser


def parser_of(verb: str, *arguments: str) -> ArgumentParser:
    """The parser that would print the help for these arguments (``--help`` if there are none).

    Raises:
        RuntimeError: no help would be printed.
    """

    def caught(self: ArgumentParser, file: Any = None) -> NoReturn:
        raise _HelpAsked(self)

    with mock.patch.object(ArgumentParser, "print_help", caught):
        try:
            VERBS[verb].load()(verb, list(arguments) or ["--help"])
        except _HelpAsked as asked:
            return asked.parser
    raise RuntimeError(f"megalit {verb} {' '.join(arguments)} prints no help")


def settings_of(parser: ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Title and settings of each group of a parser, without what only serves the parser itself."""
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_setting(action)]
        if actions:
            yield group.title or "", actions


def flags_of(parser: ArgumentParser) -> set[str]:
    """All flags that a parser knows."""
    return {flag for action in parser._actions for flag in action.option_strings}


def _is_setting(action: argparse.Action) -> bool:
    ours = action.dest in ("help", "config", "print_config")
    return not ours and action.help != argparse.SUPPRESS and not type(action).__name__.startswith(("_Action", "_Help"))


# The page -----------------------------------------------------------------------------------------------------


def reference() -> str:
    """The page, in Markdown."""
    parts = [_INTRODUCTION]
    of_fit = {action.dest for action in parser_of("fit")._actions}
    for verb in VERBS:
        for action in ACTIONS.get(verb, [""]):
            parser = parser_of(verb, *([action, "--help"] if action else []))
            name = f"{verb} {action}".strip()
            parts.append(f"## megalit {name} {{#{name.replace(' ', '-')}}}\n\n{_purpose(verb, parser)}.\n")
            parts.append(_epilog(parser))
            if verb == "inspect":
                parts += ["A store, or a folder of stores:\n", *_settings(parser), "A configuration of `fit`:\n"]
                parser = parser_of(verb, "--config", str(ROOT / "configs" / "quickstart.yaml"), "--help")
            if verb in _LIKE_FIT:
                parts.append("All settings of [megalit fit](#fit)" + (", and\n" if _own(parser, of_fit) else ".\n"))
            parts += _settings(parser, of_fit if verb in _LIKE_FIT else set(), said=_purpose(verb, parser))
    for heading, verb, flag, shared, names in CLASSES:
        parts.append(f"## {heading}: `{flag}` {{#{heading.lower()}}}\n")
        known: set[str] = set()
        if shared is not None:
            parser = parser_of(verb, f"{flag}.help={shared}")
            parts += ["### Of all of them\n", *_settings(parser)]
            known = {action.dest for action in parser._actions}
        for name in names:
            parser = parser_of(verb, f"{flag}.help={name}")
            parts.append(f"### {name}\n")
            parts += [f"{_plain(title)}.\n" for title, _ in settings_of(parser)][:1]
            parts += _settings(parser, known, headings=False)
    return "\n".join(part for part in parts if part)


def _purpose(verb: str, parser: ArgumentParser) -> str:
    """What a verb is for: its settings' own words, where they are one dataclass."""
    titles = [title for title, _ in settings_of(parser) if title not in _UNTITLED]
    summary = VERBS[verb].summary
    return _plain(titles[0] if titles and verb not in ("fit", *_LIKE_FIT) else summary[0].upper() + summary[1:])


def _own(parser: ArgumentParser, known: set[str]) -> bool:
    return any(action.dest not in known for _, actions in settings_of(parser) for action in actions)


def _settings(
    parser: ArgumentParser, known: set[str] | frozenset[str] = frozenset(), headings: bool = True, said: str = ""
) -> list[str]:
    """Lists of settings, without those that are known, each below its group's title if that is not said yet."""
    parts = []
    for title, actions in settings_of(parser):
        lines = [_setting(action) for action in actions if action.dest not in known]
        if lines:
            if headings and title not in _UNTITLED and _plain(title) != said:
                parts.append(f"**{_plain(title)}**\n")
            parts.append("\n".join(lines) + "\n")
    return parts


def _setting(action: argparse.Action) -> str:
    name = action.option_strings[0] if action.option_strings else action.dest.upper()
    line = f"- `{name}`"
    kind = _kind(action)
    if kind:
        line += f" {_plain(kind)}"
    if action.option_strings and action.default not in (argparse.SUPPRESS, None):
        line += f" = `{action.default}`"
    return f"{line}: {_plain(action.help or '')}"


def _kind(action: argparse.Action) -> str:
    kind = getattr(action, "_typehint", None) or action.type
    if kind is None or isinstance(action.const, bool):
        return ""
    text = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", None) else str(kind)
    text = re.sub(r"\b(?:[a-z_0-9]+\.)+(?=[A-Za-z])", "", text)
    return text.replace("NoneType", "null").replace("None", "null")


def _epilog(parser: ArgumentParser) -> str:
    text = (parser.epilog or "").strip("\n")
    return f"```text\n{text}\n```\n" if text else ""


def _plain(text: str) -> str:
    """Docstrings' markup as Markdown: literals stay, and nothing else is taken for markup."""
    text = " ".join(text.split())
    text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text.replace("`", "'")]
    parts[::2] = [re.sub(r"([*_\[\]{}|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


# The hook -----------------------------------------------------------------------------------------------------

_OUTSIDE = re.compile(r"\]\(\.\./(?!\.\.)([^)#\s]+)")
_COPIES = "source"


def on_files(files: Any, config: Any) -> Any:
    """Add the page, and the files of the project to which pages link."""
    from mkdocs.structure.files import File

    outside = {name for page in files.documentation_pages() for name in _OUTSIDE.findall(page.content_string)}
    for name in sorted(outside):
        # Pages outside `docs/` have links of their own, which would lead nowhere: they are not for the site.
        if (ROOT / name).is_file() and not name.endswith(".md"):
            files.append(File.generated(config, f"{_COPIES}/{name}", abs_src_path=str(ROOT / name)))
    files.remove(files.get_file_from_path(PAGE))  # what stands there for those who read it in a clone
    files.append(File.generated(config, PAGE, content=reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of ``docs/`` lead to the copies; what is not there stays a dead link and fails the build."""
    return _OUTSIDE.sub(rf"]({_COPIES}/\1", markdown)
