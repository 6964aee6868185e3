"""A corpus that needs no network and no file: the documentation in this Python installation.

One document for each documentation topic of the language reference (``pydoc_data``) and one for
the docstrings of each module of the standard library and of the installed packages. Sources are
parsed, never imported, so reading them has no side effects.
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from megalit.corpus.documents import Document
from megalit.errors import UserError

NAME = "python-docs"

# Enough text for a first run, small enough to parse in seconds. Parsing stops there; modules come
# in a fixed order, so the same installation always gives the same corpus.
MAX_CHARACTERS = 5_000_000
MIN_CHARACTERS = 400

_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "_vendor"}


def read() -> Iterator[Document]:
    """Yield the documents: topics first, then the standard library, then packages by name.

    Raises:
        UserError: the installation carries no documentation.
    """
    total = 0
    for document in _documents():
        yield document
        total += len(document.text)
        if total >= MAX_CHARACTERS:
            return
    if total == 0:
        raise UserError("this Python installation carries no documentation: name files of your own as inputs")


def _documents() -> Iterator[Document]:
    for name, text in sorted(_topics().items()):
        if len(text) >= MIN_CHARACTERS:
            yield Document(f"topics/{name}", text, NAME, f"topic {name}")
    paths = sysconfig.get_paths()
    yield from _modules(Path(paths["stdlib"]), "stdlib")
    yield from _modules(Path(paths["purelib"]), "packages")


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return {}
    return topics


def _modules(root: Path, prefix: str) -> Iterator[Document]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
            continue
        text = _docstrings(path)
        if len(text) >= MIN_CHARACTERS:
            yield Document(f"{prefix}/{relative.with_suffix('').as_posix()}", text, NAME, str(path))


def _docstrings(path: Path) -> str:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                name = "" if isinstance(node, ast.Module) else f"{node.name}\n"
                parts.append(name + docstring)
    return "\n\n".join(parts).encode("utf-8", "ignore").decode()
