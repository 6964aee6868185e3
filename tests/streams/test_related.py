"""Related documents come to stand side by side."""

import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import DataSet
from hypothesis import given
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.streams import RealStream, StitchedStream
from megalit.streams.joining import join
from megalit.streams.pieces import Literals
from megalit.streams.related import nearest_neighbour_path, token_tfidf

SMALL = {"context_length": 16, "global_batch": 4, "total_tokens": 640}


@given(st.integers(1, 60), st.integers(0, 5))
def test_the_path_visits_every_document_once(documents: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(documents, 3))
    assert sorted(nearest_neighbour_path(vectors, seed)) == list(range(documents))


def test_the_path_goes_through_one_cluster_after_the_other() -> None:
    random = np.random.default_rng(0)
    cluster = random.permutation(np.repeat(np.arange(5), 20))
    vectors = np.eye(5)[cluster] + 0.01 * random.normal(size=(100, 5))
    changes = int((np.diff(cluster[nearest_neighbour_path(vectors, 0)]) != 0).sum())
    assert changes == 4


def test_tokens_tell_which_documents_are_related(data_set: DataSet) -> None:
    tables = join(data_set.stores, Literals(0, 1))
    vectors = token_tfidf(tables).toarray()
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1)
    along = nearest_neighbour_path(vectors, 0)
    likeness = (vectors[along[:-1]] * vectors[along[1:]]).sum(axis=1).mean()
    anyhow = (vectors[:-1] * vectors[1:]).sum(axis=1).mean()
    assert likeness > anyhow + 0.05


def embeddings(data_set: DataSet, path: Path) -> tuple[Path, list[str]]:
    """Points on a line, so that the only path is along it, in one direction or the other from its start."""
    names = data_set.stores.real.items(["document_id"]).column(0).to_pylist()
    order = np.random.default_rng(1).permutation(names).tolist()
    angles = {name: 0.01 * place for place, name in enumerate(order)}
    rows = [{"id": name, "embedding": [np.cos(angles[name]), np.sin(angles[name])]} for name in names]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path, order


def test_megadocs_follow_an_embedding_file(data_set: DataSet, tmp_path: Path) -> None:
    path, order = embeddings(data_set, tmp_path / "e.parquet")
    data = StitchedStream(
        stores=str(data_set.folder), synthetic_fraction=1, document_order="related", embeddings=str(path), **SMALL
    )
    stream = data.mixture.streams[0]
    documents = stream.tables.table.document[stream.packed(0).rows]
    found = [stream.tables.ids[int(d)].as_py() for d in dict.fromkeys(documents[documents >= 0].tolist())]
    assert Counter(found) == Counter(order)
    steps = [abs(order.index(a) - order.index(b)) for a, b in pairwise(found)]
    # From where it starts to one end, and one jump back to the other side.
    assert sorted(steps)[:-2] == [1] * (len(steps) - 2)
    assert stream.packed(0).rows.tolist() == stream.packed(1).rows.tolist()


def test_embeddings_that_do_not_fit_are_named(data_set: DataSet, tmp_path: Path) -> None:
    def plan(path: Path) -> object:
        return RealStream(stores=str(data_set.folder), document_order="related", embeddings=str(path), **SMALL).plan

    with pytest.raises(UserError, match="does not exist"):
        plan(tmp_path / "absent.parquet")
    (tmp_path / "bad.parquet").write_text("x")
    with pytest.raises(UserError, match="is no Parquet file with 'id' and 'embedding'"):
        plan(tmp_path / "bad.parquet")
    path, _ = embeddings(data_set, tmp_path / "e.parquet")
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match=r"lacks the document 'document-\d+'"):
        plan(path)
    with pytest.raises(UserError, match="set data.document_order to related"):
        RealStream(embeddings="x", **SMALL)


def test_a_plan_knows_the_content_of_the_embeddings_and_not_their_name(data_set: DataSet, tmp_path: Path) -> None:
    def plan(path: Path) -> str:
        settings = {**SMALL, "document_order": "related", "embeddings": str(path)}
        return RealStream(stores=str(data_set.folder), **settings).plan.fingerprint  # type: ignore[arg-type]

    path, _ = embeddings(data_set, tmp_path / "e.parquet")
    first = plan(path)
    assert plan(Path(shutil.copy(path, tmp_path / "f.parquet"))) == first
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "embedding", table["embedding"].take(pa.array(range(len(table))[::-1]))), path)
    assert plan(path) != first
