"""Stores on object storage, against a local server that speaks S3."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from data_sets import DataSet
from moto.server import ThreadedMotoServer

from megalit.cli import main
from megalit.errors import UserError
from megalit.streams import StitchedStream
from megalit.streams.remote import local_stores

URL = "s3://corpus/mine/stores"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MEGALIT_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("corpus")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()
    server.stop()


def upload(bucket: Any, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.upload_file(str(path), f"mine/stores/{path.relative_to(folder)}")


def windows(stores: str) -> list[list[int]]:
    data = StitchedStream(stores=stores, generations=2, context_length=16, global_batch=4, total_tokens=16 * 4 * 5)
    return np.concatenate([batch["tokens"] for batch in data.train_dataloader()]).tolist()


def test_a_remote_data_set_gives_the_windows_of_the_local_one(bucket: Any, data_set: DataSet, tmp_path: Path) -> None:
    upload(bucket, data_set.folder)
    assert windows(URL) == windows(str(data_set.folder))
    staged = local_stores(URL + "/")
    assert staged.is_relative_to(tmp_path / "cache")
    assert {path.name for path in staged.glob("[!.]*")} == {path.name for path in data_set.folder.glob("[!.]*")}


def test_only_what_is_new_is_fetched_again(bucket: Any, data_set: DataSet) -> None:
    upload(bucket, data_set.folder)
    for name in ("thoughts", "tokenizer"):
        bucket.objects.filter(Prefix=f"mine/stores/{name}/").delete()
    folder = local_stores(URL)
    assert not (folder / "thoughts").exists()
    before = {path: path.stat().st_ino for path in (folder / "real").iterdir()}
    upload(bucket, data_set.folder)
    bucket.Object("mine/stores/generations/manifest.json").delete()
    with pytest.raises(UserError, match=f"{URL}/generations is a token store that is there in part: copy it again"):
        local_stores(URL)
    bucket.objects.filter(Prefix="mine/stores/generations/").delete()
    local_stores(URL)
    assert (folder / "thoughts" / "manifest.json").exists()
    assert (folder / "tokenizer" / "tokenizer.json").exists()
    assert not (folder / "generations").exists()
    assert before == {path: path.stat().st_ino for path in (folder / "real").iterdir()}


def test_a_store_whose_manifest_has_changed_is_fetched_again(bucket: Any, data_set: DataSet) -> None:
    upload(bucket, data_set.folder)
    folder = local_stores(URL)
    manifest = (folder / "real" / "manifest.json").read_bytes() + b"\n"
    bucket.Object("mine/stores/real/manifest.json").put(Body=manifest)
    local_stores(URL)
    assert (folder / "real" / "manifest.json").read_bytes() == manifest


def test_a_damaged_copy_is_named_and_not_kept(bucket: Any, data_set: DataSet) -> None:
    upload(bucket, data_set.folder)
    (chunk,) = bucket.objects.filter(Prefix="mine/stores/real/chunk")
    chunk.put(Body=chunk.get()["Body"].read()[:-10])
    with pytest.raises(UserError, match=f"{URL}/real is damaged .*copy the store there again"):
        local_stores(URL)
    upload(bucket, data_set.folder)
    assert windows(URL) == windows(str(data_set.folder))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://corpus/other", "s3://corpus/other holds no finished token store"),
        ("s3://no-such-bucket/stores", "cannot be staged to .*check the URL, the credentials"),
        ("ftp://corpus/stores", "is no URL of token stores"),
    ],
)
def test_urls_that_hold_nothing_are_named(
    bucket: Any, location: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        local_stores(location)
    with pytest.raises(SystemExit) as end:
        main(["inspect", location])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
