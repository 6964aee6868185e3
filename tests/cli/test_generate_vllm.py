"""``megalit generate`` on a real vLLM, in this process and behind a server; ``MEGALIT_VLLM_PYTHON`` names a Python
that has it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from data_sets import make_rows, write_jsonl

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import TRAIN, Corpus
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.modeling import hugging_face
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape

pytestmark = pytest.mark.vllm

PYTHON = os.environ.get("MEGALIT_VLLM_PYTHON", sys.executable)
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
}
DOCUMENTS, COUNT = 200, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("vllm")
    path = write_jsonl(
        folder / "documents.jsonl", [{k: row[k] for k in ("id", "text")} for row in make_rows(DOCUMENTS)]
    )
    corpus = build_corpus(CorpusSettings([str(path)], validation_fraction=0), folder / "corpus")
    train_bpe(corpus.texts(TRAIN), 300, folder / "tokenizer")
    tokenizer = Tokenizer(str(folder / "tokenizer"))
    model = LanguageModel(Shape(64, 96, 2, 2, 2), tokenizer.vocabulary_size, init_std=0.2, seed=1)
    model.configure_model()
    hugging_face.export(model, folder / "hf", torch.float32, 1024, bos=tokenizer.bos, eos=tokenizer.eos)
    tokenizer.save(folder / "hf")
    return folder


def config(folder: Path, name: str, engine: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        f"""
corpus: {folder}/corpus
output: {folder}/{name}
generations: {COUNT}
recipe: {{class_path: Rephrase, init_args: {{chunk_tokens: 128}}}}
engine: {engine}
sampling: {{max_tokens: 64}}
cleaning: {{truncated: keep, min_words: 0, copy_threshold: null, repetition_threshold: null, refusals: false}}
attempts: 9
"""
    )
    return path


def generate(path: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [PYTHON, "-m", "megalit", "generate", "--config", str(path)]
    # A group of its own: vLLM's engine is another process.
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=log.open("wb"), stderr=subprocess.STDOUT, process_group=0)


def journal_bytes(output: Path) -> int:
    return sum(path.stat().st_size for path in (output / "journal").glob("*.jsonl"))


def is_complete(output: Path, corpus: Path) -> bool:
    table = pq.read_table(output / "generations.parquet", columns=["document_id", "generation"]).to_pylist()
    expected = [(row["id"], n) for row in Corpus(corpus).rows("documents", TRAIN, ["id"]) for n in range(COUNT)]
    return [(row["document_id"], row["generation"]) for row in table] == expected


def killed_once_and_resumed(path: Path, output: Path, log: Path) -> None:
    process = generate(path, log)
    while journal_bytes(output) < 50_000:
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "generations.parquet").exists()
    before = journal_bytes(output)
    process = generate(path, log)
    assert process.wait(600) == 0, log.read_text()[-3000:]
    assert journal_bytes(output) > before > 50_000


def test_vllm_in_process_is_killed_once_and_resumed(folder: Path, tmp_path: Path) -> None:
    engine = f"""{{class_path: Vllm, init_args: {{model: {folder}/hf, chat: false, in_flight: 64,
      options: {{dtype: float32, enforce_eager: true, max_model_len: 1024}}}}}}"""
    killed_once_and_resumed(config(folder, "in_process", engine), folder / "in_process", tmp_path / "log")
    assert is_complete(folder / "in_process", folder / "corpus")


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[int]:
    """A ``vllm serve`` on loopback; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--served-model-name", "tiny"]
    # What `vllm serve` starts; the command itself asks for the version of a package that the CPU build calls otherwise.
    serve = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "hf")]
    command = [*serve, "--port", str(port), *options, "--no-enable-chunked-prefill"]
    log = (tmp_path / "server.log").open("wb")
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    for _ in range(600):
        assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    yield port
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_server_of_vllm_is_used_by_its_protocol(folder: Path, server: int, tmp_path: Path) -> None:
    engine = f"""{{class_path: OpenAI, init_args: {{model: tiny, url: 'http://127.0.0.1:{server}/v1', chat: false,
      tokenizer: {folder}/hf, in_flight: 64}}}}"""
    killed_once_and_resumed(config(folder, "served", engine), folder / "served", tmp_path / "log")
    assert is_complete(folder / "served", folder / "corpus")
