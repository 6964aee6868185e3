"""A corpus of the user's and the configuration that makes generations of it."""

from pathlib import Path

import pytest
from data_sets import make_rows, write_jsonl
from running import Run

CONFIG = """
corpus: corpus
output: out
generations: 3
recipe: {class_path: CritiqueAndRevise, init_args: {chunk_tokens: 40}}
engine: {class_path: Scripted, init_args: {seconds: SECONDS}}
cleaning: {copy_threshold: null}
"""


@pytest.fixture
def scripted(tmp_path: Path, run: Run) -> Path:
    """A configuration of a scripted engine on a corpus of the user's."""
    write_jsonl(tmp_path / "documents.jsonl", [{k: row[k] for k in ("id", "text")} for row in make_rows(40)])
    assert run("corpus", "--inputs", "[documents.jsonl]", "--output", "corpus", "--validation_fraction", "0.2") == 0
    path = tmp_path / "generate.yaml"
    path.write_text(CONFIG.replace("SECONDS", "0"))
    return path
