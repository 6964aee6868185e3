"""README and documentation speak of what exists: files, verbs, flags; and every page can be found."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from megalit.cli import VERBS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAVIGATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
# The notebook tells what was, also under names that are gone.
CURRENT = [page for page in PAGES if page.name != "LOG.md"]
IDS = [page.name for page in CURRENT]

_FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"(?<![\w./-])((?:configs|docs|tests|benchmarks|callbacks|megalit|experiments)/[\w./*-]*[\w*/]|\.ci/\w+)"
)


def _hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_reference", DOCS / "cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = _hook()


def _named(navigation: Any) -> Iterator[str]:
    for entry in navigation:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else _named(value)


def test_the_navigation_names_every_page_once() -> None:
    written = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(_named(NAVIGATION)) == sorted(written)
    assert HOOK.PAGE in written, "links to what the site has there lead somewhere in a clone, too"


# Commands -----------------------------------------------------------------------------------------------------


def _commands(page: Path) -> list[list[str]]:
    """The words behind ``megalit`` of every command in a page's shell blocks."""
    found = []
    for block in _FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "megalit" in words:
                found.append(words[words.index("megalit") + 1 :])
    return found


@cache
def _flags(verb: str, *action: str) -> frozenset[str]:
    return frozenset(HOOK.flags_of(HOOK.parser_of(verb, *action, "--help")))


@cache
def _chosen_flags(flag: str) -> frozenset[str]:
    """Flags of all classes that can be chosen with a flag: which one is chosen, a configuration may say."""
    known: set[str] = set()
    for _, verb, of, shared, names in HOOK.CLASSES:
        if of == flag:
            for name in [shared, *names] if shared else names:
                known |= HOOK.flags_of(HOOK.parser_of(verb, f"{flag}.help={name}"))
    return frozenset(known)


def _known(verb: str, words: list[str]) -> set[str]:
    known = set(_flags(verb, *words[:1])) if verb in HOOK.ACTIONS else set(_flags(verb))
    if verb == "inspect":
        known |= {"--window", "--plot"}  # those of a configuration
    if verb in ("plan", "ensemble", "inspect", "prepare"):
        known |= _flags("fit")
    for flag in ("--data", "--recipe", "--engine", "--trainer.callbacks"):
        if flag in known:
            known |= _chosen_flags(flag)
    return known


def _unknown(words: list[str]) -> list[str]:
    """What a command names and the program does not know."""
    verb, rest = words[0], words[1:]
    if verb.startswith("-"):
        return [] if verb in ("--help", "--version") else [verb]
    if verb not in VERBS and verb not in ("VERB", "…"):
        return [verb]
    if verb not in VERBS:
        return []
    launched: list[str] = []
    if verb == "slurm" and "--" in rest:
        rest, launched = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    known = _known(verb, rest)
    named = [word.partition("=")[0] for word in rest if re.match(r"-{1,2}[a-z]", word)]
    wrong = [flag for flag in named if flag not in known and flag not in ("--help",)]
    wrong += [
        word for word in rest if word.startswith("configs/") and word.endswith(".yaml") and not (ROOT / word).is_file()
    ]
    return wrong + (_unknown(launched) if launched else [])


@pytest.mark.parametrize("page", CURRENT, ids=IDS)
def test_commands_name_verbs_flags_and_configurations_that_exist(page: Path) -> None:
    wrong = {" ".join(words): unknown for words in _commands(page) if (unknown := _unknown(words))}
    assert not wrong


def test_what_does_not_exist_is_found() -> None:
    assert _unknown(["train"]) == ["train"]
    assert _unknown(["fit", "--data.generation", "4", "--run", "a"]) == ["--data.generation"]
    assert _unknown(["scaling", "fit", "runs", "--laws", "power"]) == ["--laws"]
    assert _unknown(["slurm", "--nodes", "2", "--", "fit", "--config", "configs/none.yaml"]) == ["configs/none.yaml"]
    assert _unknown(["generate", "--engine.modell=a", "--recipe.styles", "a"]) == ["--engine.modell"]


def test_the_tutorials_configuration_is_one(tmp_path: Path) -> None:
    """What the reader is told to save is parsed with every value, with each of the streams that the tutorial names."""
    from megalit.cli.fit_config import fit_config

    (shown,) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(shown)
    trained = [words[1:] for words in _commands(DOCS / "tutorial.md") if words[0] == "fit"]
    runs = [fit_config([str(path) if word == "mine.yaml" else word for word in words]) for words in trained]
    streams = {run["data"]["class_path"].rpartition(".")[2] for run in runs}
    assert streams == {"RealStream", "SimpleStream", "StitchedStream"}


# Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", CURRENT, ids=IDS)
def test_links_and_paths_lead_to_files(page: Path) -> None:
    text = page.read_text()
    missing = []
    for link in _LINK.findall(text):
        target = link.partition("#")[0]
        if target and "://" not in target and not (page.parent / target).exists():
            missing.append(link)
    # Code that is shown may name what the reader will have; what is said in words exists.
    words = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for path in _PATH.findall(_LINK.sub("", words)):
        if not any(ROOT.glob(path.rstrip("/"))):
            missing.append(path)
    assert not missing


# The page on the command line ---------------------------------------------------------------------------------


def test_the_reference_has_every_verb_setting_and_class() -> None:
    page = HOOK.reference()
    for verb in VERBS:
        for action in HOOK.ACTIONS.get(verb, [""]):
            name = f"{verb} {action}".strip()
            assert f"\n## megalit {name} {{#" in page
    listed = set(re.findall(r"^- `(--[\w.]+)`", page, re.MULTILINE))
    for flag in ("--inputs", "--model.learning_rate", "--data.real_fraction", "--recipe.styles", "--window", "--law"):
        assert flag in listed
    assert "megadoc" in page


def test_the_reference_names_every_class_that_the_packages_offer() -> None:
    from megalit import streams
    from megalit.synthesis import engines, recipes

    named = {name for *_, names in HOOK.CLASSES for name in names}
    offered = {*streams.__all__, *recipes.__all__, *engines.__all__}
    assert offered - named == {"StreamDataModule", "Engine", "EngineError", "TooLongError"}


def test_docstrings_become_markdown() -> None:
    plain = HOOK._plain
    assert plain("``a_b`` of :class:`~x.Y`,\n a_b < c*") == r"`a_b` of `x.Y`, a\_b &lt; c\*"
