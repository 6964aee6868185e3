"""The corpus that lies in every Python installation."""

from pathlib import Path

import pytest

from megalit.corpus import python_docs


def test_documents_are_many_unique_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "MAX_CHARACTERS", 700_000)
    documents = list(python_docs.read())
    assert len(documents) > 50
    assert len({document.id for document in documents}) == len(documents)
    assert sum(len(document.text) for document in documents) > 600_000
    assert any(document.id.startswith("stdlib/") for document in documents)
    assert documents == list(python_docs.read())


def test_sources_are_parsed_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        f'"""Says much: {"words " * 100}"""\nraise RuntimeError\n\ndef f():\n    """Inner."""\n'
    )
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "short.py").write_text('"""Short."""')
    (document,) = python_docs._modules(tmp_path, "here")
    assert document.id == "here/module"
    assert document.text.startswith("Says much")
    assert document.text.endswith("f\nInner.")
