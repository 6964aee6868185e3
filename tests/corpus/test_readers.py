"""Documents come in as they are; what is malformed is named with its place."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megalit.corpus.documents import Document, Generation, Thought
from megalit.corpus.readers import read
from megalit.errors import UserError

ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "text": "Ein schöner Tag.",
        "generations": [{"style": "easy", "text": "Nice day."}, {"style": "hard", "text": "A day of beauty."}],
        "thoughts": [{"offset": 4, "text": "an adjective"}, {"offset": 16, "text": "the end"}],
    },
    {"id": "b", "text": "Second.\n"},
]


def plain(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS), encoding="utf-8")


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


def zstandardized(path: Path) -> None:
    path.write_bytes(zstandard.compress("\n".join(map(json.dumps, ROWS)).encode()))


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("d.jsonl", plain), ("d.jsonl.gz", gzipped), ("d.jsonl.zst", zstandardized), ("d.parquet", parquet)],
)
def test_every_format_gives_the_same_documents(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    first, second = read(str(tmp_path / name))
    assert (first.id, first.text, first.source) == ("a", "Ein schöner Tag.", "d")
    assert first.generations == (Generation("easy", "Nice day."), Generation("hard", "A day of beauty."))
    assert first.thoughts == (Thought(4, "an adjective"), Thought(16, "the end"))
    assert (second.id, second.text, second.generations, second.thoughts) == ("b", "Second.\n", (), ())


def test_a_folder_of_text_has_its_paths_as_ids(tmp_path: Path) -> None:
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "x" / "deep" / "b.md").write_text("two")
    (tmp_path / "x" / "a.txt").write_text("one", encoding="utf-8-sig")  # with a byte order mark, as some editors do
    (tmp_path / "x" / "picture.png").write_bytes(b"\x89")
    documents: list[Document] = list(read(str(tmp_path / "x")))
    assert [(d.id, d.text) for d in documents] == [("a.txt", "one"), ("deep/b.md", "two")]


BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"id": "a", "text": "x"}\n{"id"\n', "line 2 is not JSON"),
    "no object": (b"[1, 2]\n", "line 1 is not an object"),
    "no id": (b'{"text": "x"}\n', "line 1 has no 'id'"),
    "empty id": (b'{"id": "", "text": "x"}\n', "line 1 has no 'id'"),
    "no text": (b'{"id": "a"}\n', "line 1 has no 'text'"),
    "blank text": (b'{"id": "a", "text": " \\n"}\n', "line 1 has no 'text'"),
    "number as text": (b'{"id": "a", "text": 3}\n', "line 1 has no 'text'"),
    "not UTF-8": (b'{"id": "a", "text": "x"}\n{"id": "b", "text": "\xff"}\n', "is not UTF-8"),
    "lone surrogate": (b'{"id": "a", "text": "\\ud800"}\n', "text that is not Unicode"),
    "generations": (b'{"id": "a", "text": "x", "generations": "y"}\n', "'generations' is not a list of objects"),
    "empty generation": (b'{"id": "a", "text": "x", "generations": [{"style": "s"}]}\n', "generation 1, has no 'text'"),
    "offset beyond": (b'{"id": "a", "text": "x", "thoughts": [{"offset": 2, "text": "t"}]}\n', "has offset 2"),
    "offset negative": (b'{"id": "a", "text": "x", "thoughts": [{"offset": -1, "text": "t"}]}\n', "has offset -1"),
    "offsets descend": (
        b'{"id": "a", "text": "xyz", "thoughts": [{"offset": 2, "text": "t"}, {"offset": 1, "text": "t"}]}\n',
        "thought 2, has offset 1",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_malformed_row_is_named(name: str, compressed: bool, tmp_path: Path) -> None:
    data, message = BAD_ROWS[name]
    path = tmp_path / ("d.jsonl.gz" if compressed else "d.jsonl")
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.raises(UserError) as refused:
        list(read(str(path)))
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("d.jsonl.gz", b"plain"),
        ("d.jsonl.gz", gzip.compress(b'{"id": "a", "text": "x"}\n' * 50, mtime=0)[:-10]),
        ("d.jsonl.zst", b"plain"),
        ("d.parquet", b"plain"),
        ("d.parquet", b""),
        ("d.csv", b"a,b"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        list(read(str(tmp_path / name)))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.jsonl does not exist"):
        list(read("absent.jsonl"))
    with pytest.raises(UserError, match="holds no text files"):
        list(read(str(tmp_path)))


def test_a_compressed_file_that_is_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    """Also where the cut falls between two lines."""
    lines = b"".join(json.dumps({"id": str(n), "text": "word " * 20}).encode() + b"\n" for n in range(3000))
    whole = zstandard.compress(lines[: len(lines) // 2]) + zstandard.compress(lines[len(lines) // 2 :])
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(whole)
    assert len(list(read(str(path)))) == 3000
    end_of_first = len(zstandard.compress(lines[: len(lines) // 2]))
    for size in [*range(1, len(whole), max(1, len(whole) // 40)), len(whole) - 1]:
        if size != end_of_first:
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match="is cut off"):
                list(read(str(path)))


def test_zstandard_with_a_long_window_is_read(tmp_path: Path) -> None:
    """As ``zstd --long=28`` and above write; without being told, the library stops at windows of 128 MiB."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    # In parts, so that the size is not known and the window is not made smaller for it.
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    line = json.dumps({"id": "a", "text": "word"}).encode() + b"\n"
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(compressor.compress(line) + compressor.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << 28
    assert [document.text for document in read(str(path))] == ["word"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.JSONL").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[1]).encode())
    assert [document.id for document in read(str(tmp_path / "x.JSONL"))] == ["b"]


def test_parquet_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": pa.array([b"\xff\xfe"]).cast(pa.binary()).view(pa.string())})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="holds text that is not UTF-8"):
        list(read(str(tmp_path / "x.parquet")))
    pq.write_table(
        pa.Table.from_pylist([{"id": str(n), "text": "words " * 50} for n in range(500)]), tmp_path / "y.parquet"
    )
    data = bytearray((tmp_path / "y.parquet").read_bytes())
    data[40:400] = bytes(360)
    (tmp_path / "y.parquet").write_bytes(data)
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        list(read(str(tmp_path / "y.parquet")))
