"""Small inputs for tests, and the data set made of one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megalit.corpus.tables import Corpus
from megalit.corpus.tokenizers import Tokenizer
from megalit.streams.store_set import StoreSet

GENERATIONS = 5
THOUGHTS = 3


def make_rows(documents: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of random words, with generations and thoughts, as rows of an input."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghij"), size=random.integers(2, 7))) for _ in range(200)]

    def text(low: int, high: int) -> str:
        return " ".join(random.choice(words, size=random.integers(low, high)))

    rows = []
    for index in range(documents):
        body = text(5, 120)
        offsets = sorted(int(offset) for offset in random.integers(0, len(body) + 1, size=index % (THOUGHTS + 1)))
        rows.append(
            {
                "id": f"document-{index}",
                "text": body,
                "generations": [{"style": "easy", "text": text(3, 90)} for _ in range(GENERATIONS)],
                "thoughts": [{"offset": offset, "text": text(2, 20)} for offset in offsets],
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class DataSet:
    """A finished data set and the rows it was made from."""

    rows: dict[str, dict[str, Any]]
    corpus: Corpus
    tokenizer: Tokenizer
    stores: StoreSet

    @property
    def folder(self) -> Path:
        return self.stores.folder
