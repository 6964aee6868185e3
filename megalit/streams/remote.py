"""Token stores on object storage (s3, gs, and what else obstore reads), staged to a local folder first.

Windows are slices of mapped files, so a store is copied before it is read, once per node. LitData's own
staging fetches chunks one by one while it streams, in the order in which *it* reads them, and evicts them again.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from megalit.errors import UserError, reason
from megalit.files import digest, lock, new_folder
from megalit.streams.building import verify
from megalit.streams.store_set import in_part, is_part_of_store

MANIFEST = "manifest.json"
_PARALLEL = 16


def is_remote(location: str) -> bool:
    """Whether a location is a URL."""
    return "://" in location


def one_spelling(location: str) -> str:
    """A location as all that name it would: ``stores/``, its absolute path and a link to it are one folder."""
    if is_remote(location):
        return location.rstrip("/")
    folder = os.path.realpath(location)
    # What is said of it is shorter where it lies in the working folder, as users name it, too.
    near = os.path.relpath(folder)
    return folder if near.startswith("..") else near


def cache_folder() -> Path:
    """Where remote stores are staged on this node: ``$MEGALIT_CACHE``, or the user's cache folder."""
    named = os.environ.get("MEGALIT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megalit"


def stores_at_hand(location: str) -> Path:
    """The folder of a data set's stores, or where they are staged, if they are."""
    if not is_remote(location):
        return Path(location)
    url = one_spelling(location)
    return cache_folder() / "stores" / f"{PurePosixPath(url).name}-{digest(url.encode())}"


def local_stores(location: str) -> Path:
    """The folder of a data set's stores; one that is remote is staged first, by one process of a node.

    A store that is there already is not fetched again, unless its manifest has changed; one that is new is
    added. Each is verified against its manifest before it appears.

    Raises:
        UserError: the URL cannot be read, or holds no finished store, or what came does not match its manifest.
    """
    folder = stores_at_hand(location)
    if not is_remote(location):
        return folder
    url = one_spelling(location)
    try:
        remote = _open(url)
        parts = _list(remote, url)
        if not parts:
            raise UserError(f"{url} holds no finished token store: copy the folder that `megalit tokenize` wrote there")
        with lock(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _forget_changed(folder, remote, parts)
            for name, keys in parts.items():
                if not (folder / name).exists():
                    _stage(folder / name, remote, keys, f"{url}/{name}")
    except (BaseError, OSError) as error:
        raise UserError(
            f"{url} cannot be staged to {folder} ({reason(error)}): check the URL, the credentials and the space"
        ) from error
    return folder


def _open(url: str) -> ObjectStore:
    options: dict[str, Any] = {}
    if url.startswith("s3://"):
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = boto3.Session()
        # The credentials that every AWS tool finds; without any, a public bucket can still be read.
        if session.get_credentials() is not None:
            options["credential_provider"] = Boto3CredentialProvider(session)
        else:
            options["skip_signature"] = True
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
        if session.region_name:
            options["region"] = session.region_name
    try:
        return from_url(url, **options)
    except (ValueError, BaseError) as error:
        raise UserError(
            f"{url} is no URL of token stores ({error}): give s3://bucket/path or gs://bucket/path"
        ) from error


def _list(remote: ObjectStore, url: str) -> dict[str, list[str]]:
    """The files of each finished store, and of the tokenizer, by folder.

    Raises:
        UserError: a store is there in part.
    """
    parts: dict[str, list[str]] = {}
    for page in obstore.list(remote):
        for found in page:
            name, _, file = found["path"].partition("/")
            if file and not name.startswith("."):
                parts.setdefault(name, []).append(file)
    finished = {name for name, files in parts.items() if MANIFEST in files}
    if not finished:
        return {}
    for name, files in parts.items():
        if name not in finished and is_part_of_store(files):
            raise in_part(f"{url}/{name}")
    return {
        name: [f"{name}/{file}" for file in files]
        for name, files in parts.items()
        if name in finished or name == "tokenizer"
    }


def _forget_changed(folder: Path, remote: ObjectStore, parts: dict[str, list[str]]) -> None:
    for staged in folder.glob("[!.]*"):
        marker = MANIFEST if (staged / MANIFEST).exists() else "tokenizer.json"
        if staged.name in parts and (staged / marker).read_bytes() == _read(remote, f"{staged.name}/{marker}"):
            continue
        shutil.rmtree(staged)


def _read(remote: ObjectStore, key: str) -> bytes:
    return bytes(obstore.get(remote, key).bytes())


def _stage(target: Path, remote: ObjectStore, keys: list[str], origin: str) -> None:
    with new_folder(target) as temporary:

        def fetch(key: str) -> None:
            path = temporary / key.partition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for part in obstore.get(remote, key).stream():
                    file.write(part)

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(fetch, keys))
        if (temporary / MANIFEST).exists():
            try:
                verify(temporary)
            except UserError as error:
                raise UserError(f"{origin} is damaged ({error}): copy the store there again") from error
