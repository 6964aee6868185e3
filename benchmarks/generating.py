"""Tokens per second through ``megalit generate`` against vLLM's own asynchronous engine on the same requests.

A Llama that megalit exports, large enough that the model is the bound; documents of random words, four rephrases each.
Each side loads the model in a process of its own, several times in turn; loading does not count. vLLM may lie in
another environment:

    python benchmarks/generating.py --vllm vllm-env/bin/python

Prints one JSON line.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = {"hidden_size": 512, "intermediate_size": 1536, "layers": 8, "heads": 8, "kv_heads": 8}
OPTIONS = {"dtype": "bfloat16", "max_model_len": 1024}
MAX_TOKENS, IN_FLIGHT = 128, 128

CONFIG = """
corpus: {folder}/corpus
generations: 4
recipe: {{class_path: Rephrase, init_args: {{chunk_tokens: null}}}}
engine:
  class_path: Vllm
  init_args: {{model: {folder}/hf, chat: false, in_flight: {in_flight}, options: {options}}}
sampling: {{max_tokens: {max_tokens}}}
cleaning: {{truncated: keep, min_words: 0, refusals: false}}
"""


def prepare(folder: Path, documents: int) -> None:
    """A corpus and an exported random model."""
    import numpy as np
    import torch

    from megalit.corpus.build import CorpusSettings, build_corpus
    from megalit.corpus.tables import TRAIN
    from megalit.corpus.tokenizers import Tokenizer, train_bpe
    from megalit.modeling import hugging_face
    from megalit.modeling.language_model import LanguageModel
    from megalit.modeling.shapes import Shape

    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghij"), size=random.integers(2, 7))) for _ in range(500)]
    texts = [" ".join(random.choice(words, size=random.integers(40, 160))) for _ in range(documents)]
    rows = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    (folder / "documents.jsonl").write_text("\n".join(rows))
    corpus = build_corpus(CorpusSettings([str(folder / "documents.jsonl")], validation_fraction=0), folder / "corpus")
    train_bpe(corpus.texts(TRAIN), 8192, folder / "tokenizer")
    tokenizer = Tokenizer(str(folder / "tokenizer"))
    model = LanguageModel(Shape(**MODEL), tokenizer.vocabulary_size, seed=0)
    model.configure_model()
    hugging_face.export(model, folder / "hf", torch.float32, 1024, bos=tokenizer.bos, eos=tokenizer.eos)
    tokenizer.save(folder / "hf")


def through_megalit(python: str, folder: Path, name: str, environment: dict[str, str]) -> dict[str, float]:
    options = json.dumps(OPTIONS)
    text = CONFIG.format(folder=folder, in_flight=IN_FLIGHT, options=options, max_tokens=MAX_TOKENS)
    (folder / "generate.yaml").write_text(text)
    command = [python, "-m", "megalit", "generate", "--config", folder / "generate.yaml", "--output", folder / name]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    status = json.loads((folder / name / "status" / "0-of-1.json").read_text())
    return {"tokens": status["tokens"], "seconds": status["seconds"]}


async def direct(folder: Path) -> dict[str, float]:
    """The same prompts, settings and seeds, given to the engine without a recipe, a journal or a check."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from megalit.corpus.tables import Corpus
    from megalit.synthesis.engines.local_model import PromptEncoder
    from megalit.synthesis.recipes import Rephrase
    from megalit.synthesis.requests import Sampling, request_seed
    from megalit.synthesis.work import Work, document_items, sources

    class Named:
        model = "direct"

    encoder = PromptEncoder(str(folder / "hf"), None, chat=False)
    recipe: Any = Rephrase(chunk_tokens=None)
    engine: Any = Named()
    work = Work(recipe, engine, Sampling(max_tokens=MAX_TOKENS), None, 4)  # type: ignore[arg-type]
    prompts = []
    for item in document_items(work, sources(Corpus(folder / "corpus"))):
        (request,) = next(recipe.run(item, encoder.count))
        prompts.append((encoder.encode(request), request_seed(0, work.identity(item), 0, request)))
    settings: dict[str, Any] = {
        "model": str(folder / "hf"),
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        **OPTIONS,
    }
    if current_platform.is_cpu():
        settings["enable_chunked_prefill"] = False
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings), usage_context=UsageContext.LLM_CLASS)
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def complete(number: int, tokens: list[int], seed: int) -> int:
        parameters = SamplingParams(max_tokens=MAX_TOKENS, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY)
        async with slots:
            async for output in llm.generate({"prompt_token_ids": tokens}, parameters, str(number)):
                last = output
        return len(last.outputs[0].token_ids)

    began = time.perf_counter()
    written = await asyncio.gather(*(complete(number, *prompt) for number, prompt in enumerate(prompts)))
    seconds = time.perf_counter() - began
    llm.shutdown()
    return {"tokens": sum(written), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default=sys.executable, help="python of an environment with vLLM")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--direct", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.direct:
        print("\n" + json.dumps(asyncio.run(direct(arguments.direct))))
        return
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "VLLM_LOGGING_LEVEL": "ERROR"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    rates: dict[str, list[float]] = {"vllm": [], "megalit": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.documents)
        for number in range(arguments.rounds):
            command = [arguments.vllm, __file__, "--direct", str(folder)]
            result = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
            found = json.loads(result.stdout.strip().splitlines()[-1])
            rates["vllm"].append(found["tokens"] / found["seconds"])
            made = through_megalit(arguments.vllm, folder, f"out-{number}", environment)
            rates["megalit"].append(made["tokens"] / made["seconds"])
            print({side: round(values[-1], 1) for side, values in rates.items()}, found, made, file=sys.stderr)
    version = [arguments.vllm, "-c", "import vllm; print(vllm.__version__)"]
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(
        json.dumps(
            {
                "benchmark": "generating",
                "model": MODEL,
                "requests": 4 * arguments.documents,
                "max_tokens": MAX_TOKENS,
                "tokens_per_second": {side: round(value, 1) for side, value in medians.items()},
                "megalit_against_vllm": round(medians["megalit"] / medians["vllm"], 3),
                "versions": {"vllm": subprocess.check_output(version, text=True).strip()},
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
