"""Small real data sets: a corpus, a tokenizer and token stores, made once per test session."""

import os
from collections.abc import Iterator
from pathlib import Path

# Threads of several processes on one core wait for each other; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# pytest-xdist's workers are told a width, to which all that megalit says would be folded.
os.environ.pop("COLUMNS", None)

import pytest
from data_sets import DataSet, make_rows, write_jsonl
from hypothesis import settings

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import TRAIN
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.streams.building import build_stores
from megalit.streams.store_set import open_stores

# A first example pays for imports, and a machine may be busy: how long one takes is no test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the plans of test runs out of the user's own."""
    folder = tmp_path_factory.mktemp("plans")
    os.environ["MEGALIT_PLANS"] = str(folder)
    yield folder
    del os.environ["MEGALIT_PLANS"]


@pytest.fixture(autouse=True)
def unseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test before this one, in the same process, may have called ``seed_everything``."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """60 documents with generations and some with thoughts, 20% held out."""
    folder = tmp_path_factory.mktemp("data_set")
    rows = make_rows(60)
    path = write_jsonl(folder / "documents.jsonl", rows)
    corpus = build_corpus(CorpusSettings([str(path)], validation_fraction=0.2), folder / "corpus")
    train_bpe(corpus.texts(TRAIN), 300, folder / "stores" / "tokenizer")
    tokenizer = Tokenizer(str(folder / "stores" / "tokenizer"))
    build_stores(corpus, [], tokenizer, folder / "stores")
    return DataSet({row["id"]: row for row in rows}, corpus, tokenizer, open_stores(folder / "stores"))
