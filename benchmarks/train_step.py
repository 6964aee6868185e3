"""Training steps of ``megalit fit`` on CPU against a bare PyTorch loop, transformers' Trainer and litgpt.

All train a Llama of about 10M parameters on the same windows, with AdamW, clipping and a cosine schedule; each in a
process of its own, several times in turn, and the median step counts. The peers are installed apart:

    uv venv transformers-env && uv pip install --python transformers-env/bin/python "transformers[torch]" "torch<2.14"
    uv venv litgpt-env
    uv pip install --python litgpt-env/bin/python litgpt requests "torch<2.14" "lightning!=2.6.2,!=2.6.3"
    python benchmarks/train_step.py --transformers transformers-env/bin/python --litgpt litgpt-env/bin/python

Prints one JSON line: seconds per step, and how many times faster ``megalit fit`` is. ``--output`` keeps it after each
round, and a further call adds its rounds to those that are there: where times differ between processes, many rounds say
more than one.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import write_stores

from megalit.files import write_atomic

VOCABULARY, CONTEXT, BATCH = 8192, 256, 8
SHAPE = {"hidden_size": 256, "intermediate_size": 896, "layers": 8, "heads": 4, "kv_heads": 4}
PEERS = Path(__file__).parent / "peers"
LITGPT_MICRO_BATCH = 4  # TrainArgs of its pretrain; transformers' own, 8, is the batch
LITGPT_DEFAULT = f"litgpt, bf16-mixed, compiled, micro-batches of {LITGPT_MICRO_BATCH}"

CONFIG = """
seed_everything: 0
data:
  class_path: StitchedStream
  init_args: {{stores: {stores}, context_length: {context}, global_batch: {batch}, total_tokens: {tokens}}}
model: {{shape: {shape}, compile: {compile}}}
record: {{every_n_steps: 1000}}
progress: {{line_seconds: 1000}}
trainer: {{accelerator: cpu, devices: 1, precision: {precision}, limit_val_batches: 0, log_every_n_steps: 1}}
"""


def stream(stores: Path, steps: int) -> Any:
    from megalit.streams import StitchedStream

    settings = {"context_length": CONTEXT, "global_batch": BATCH, "total_tokens": steps * BATCH * CONTEXT}
    data = StitchedStream(stores=str(stores), seed=0, **settings)
    data.setup("validate")
    return data


def bare(stores: Path, steps: int, compiled: bool, precision: str) -> list[float]:
    """What one would write by hand around the same module and batches."""
    from megalit.modeling.language_model import LanguageModel
    from megalit.modeling.shapes import Shape

    model = LanguageModel(Shape(**SHAPE), vocabulary_size=VOCABULARY, compile=compiled, seed=0)
    model.configure_model()
    optimizer: Any = model.configure_optimizers()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    seconds = []
    began = time.perf_counter()
    for step, batch in enumerate(stream(stores, steps).train_dataloader()):
        for group in optimizer.param_groups:
            group["lr"] = model.learning_rate * model.schedule.factor(step, steps)
        with autocast:
            loss = model.term_sums(batch).sum() / (batch["targets"] >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return seconds


def fit(stores: Path, folder: Path, steps: int, compiled: bool, precision: str) -> list[float]:
    """``megalit fit`` as its users run it; the time of each step is in its own log."""
    values = {"stores": stores, "context": CONTEXT, "batch": BATCH, "tokens": steps * BATCH * CONTEXT}
    text = CONFIG.format(shape=json.dumps(SHAPE), compile=json.dumps(compiled), precision=precision, **values)
    (folder / "config.yaml").write_text(text)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        command = [sys.executable, "-m", "megalit", "fit", "--config", str(folder / "config.yaml"), "--run", run + "/r"]
        subprocess.run(command, check=True, capture_output=True)
        rows = list(csv.DictReader((Path(run) / "r" / "metrics" / "version_0" / "metrics.csv").open()))
    return [float(row["throughput/seconds_per_step"]) for row in rows if row["throughput/seconds_per_step"]]


def peer(
    python: str, script: str, windows: Path, steps: int, compiled: bool, precision: str, micro_batch: int = BATCH
) -> list[float]:
    settings = {**SHAPE, "vocabulary": VOCABULARY, "batch": BATCH, "steps": steps, "windows": str(windows)}
    arguments = json.dumps({**settings, "compile": compiled, "precision": precision, "micro_batch": micro_batch})
    result = subprocess.run([python, str(PEERS / script), arguments], check=True, capture_output=True, text=True)
    seconds: list[float] = json.loads(result.stdout.strip().splitlines()[-1])
    return seconds


def windows_file(stores: Path, steps: int, path: Path) -> Path:
    """The tokens of every window with the target of its last position, ``(steps * batch, context + 1)``."""
    batches = list(stream(stores, steps).train_dataloader())
    tokens = np.concatenate([batch["tokens"].numpy() for batch in batches])
    last = np.concatenate([batch["targets"][:, -1:].numpy() for batch in batches])
    np.save(path, np.concatenate([tokens, np.maximum(last, 0)], axis=1).astype(np.int64))
    return path


def version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--skip", type=int, default=5, help="first steps that do not count: compiling, warming up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers", help="python of an environment with transformers[torch]")
    parser.add_argument("--litgpt", help="python of an environment with litgpt")
    parser.add_argument("--only", default="", help="measure only kinds whose names match this regular expression")
    parser.add_argument("--output", type=Path, help="JSON file: written after each round, and gone on with")
    parser.add_argument("--measure_bare", nargs=4)
    arguments = parser.parse_args()
    if arguments.measure_bare:
        stores, steps, compiled, precision = arguments.measure_bare
        print(json.dumps(bare(Path(stores), int(steps), compiled == "True", precision)))
        return
    steps = arguments.steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MEGALIT_PLANS"] = str(folder / "plans")
        stores = folder / "stores"
        write_stores(stores, documents=500, generations=4, vocabulary=VOCABULARY)
        windows = windows_file(stores, steps, folder / "windows.npy")

        def run_bare(compiled: bool, precision: str) -> list[float]:
            command = [sys.executable, __file__, "--measure_bare", str(stores), str(steps), str(compiled), precision]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            times: list[float] = json.loads(result.stdout.strip().splitlines()[-1])
            return times

        kinds: dict[str, Any] = {}
        for precision in ("32-true", "bf16-mixed"):
            for compiled in (True, False):
                key = f"{precision}{', compiled' if compiled else ''}"
                kinds[f"megalit fit, {key}"] = lambda c=compiled, p=precision: fit(stores, folder, steps, c, p)
                kinds[f"bare loop, {key}"] = lambda c=compiled, p=precision: run_bare(c, p)
                if arguments.transformers:
                    kinds[f"transformers, {key}"] = lambda c=compiled, p=precision: peer(
                        arguments.transformers, "transformers_trainer.py", windows, steps, c, p
                    )
            if arguments.litgpt:  # it compiles always
                kinds[f"litgpt, {precision}, compiled"] = lambda p=precision: peer(
                    arguments.litgpt, "litgpt_pretrain.py", windows, steps, True, p
                )
        if arguments.litgpt:
            kinds[LITGPT_DEFAULT] = lambda: peer(
                arguments.litgpt, "litgpt_pretrain.py", windows, steps, True, "bf16-mixed", LITGPT_MICRO_BATCH
            )
        kinds = {kind: run for kind, run in kinds.items() if re.search(arguments.only, kind)}
        if not any(kind.startswith("megalit") for kind in kinds):
            parser.error(f"--only {arguments.only} leaves out megalit: there is nothing to compare with")
        packages = {"transformers": arguments.transformers, "litgpt": arguments.litgpt}
        versions = {name: version(python, name) for name, python in packages.items() if python}
        versions["torch"] = torch.__version__
        measured = {"steps": steps, "skip": arguments.skip}
        rounds = before(arguments.output, versions, measured)
        for _ in range(arguments.rounds):
            for kind, run in kinds.items():
                rounds.setdefault(kind, []).append(round(statistics.median(run()[arguments.skip :]), 4))
                print(f"{kind}: {rounds[kind][-1]:.4f} s", file=sys.stderr)
            line = json.dumps(result(rounds, versions) | measured)
            if arguments.output:
                write_atomic(arguments.output, lambda file, line=line: file.write(line.encode() + b"\n"))
    print(line)


def before(output: Path | None, versions: dict[str, str], measured: dict[str, int]) -> dict[str, list[float]]:
    """The medians of each round of earlier calls; ``versions`` gets those of peers that this call leaves out.

    What changed in megalit since then is the caller's to know: name another file where it may count.
    """
    if output is None or not output.exists():
        return {}
    earlier = json.loads(output.read_text())
    known = {name: earlier["versions"].get(name, number) for name, number in versions.items()}
    if known != versions or {name: earlier.get(name) for name in measured} != measured:
        sys.exit(f"{output} was not measured with {versions | measured}: name another file")
    versions |= earlier["versions"]
    rounds: dict[str, list[float]] = earlier["each_round"]
    return rounds


def result(rounds: dict[str, list[float]], versions: dict[str, str]) -> dict[str, Any]:
    """What the rounds say: the median round of each kind, and its ratio to ``megalit fit`` at equal settings."""
    median = {kind: round(statistics.median(times), 4) for kind, times in rounds.items()}
    found: dict[str, Any] = {
        "benchmark": "train_step",
        "parameters": 12_000_000,
        "tokens_per_step": BATCH * CONTEXT,
        "seconds_per_step": median,
        "each_round": rounds,
        "versions": versions,
        "cores": os.cpu_count(),
    }
    found["times_faster"] = {
        kind: round(value / median["megalit fit, " + kind.split(", ", 1)[1]], 3)
        for kind, value in median.items()
        if not kind.startswith("megalit") and "megalit fit, " + kind.split(", ", 1)[1] in median
    }
    # Unless they say otherwise, transformers' users run float32 uncompiled with 8 windows a device, litgpt's bf16-mixed
    # compiled with 4 a pass; what the task is (model, windows of a step, schedule) is the same for all.
    best = min(value for kind, value in median.items() if kind.startswith("megalit"))
    defaults = {"transformers": "transformers, 32-true", "litgpt": LITGPT_DEFAULT}
    found["times_faster_than_default"] = {
        package: round(median[kind] / best, 3) for package, kind in defaults.items() if kind in median
    }
    return found


if __name__ == "__main__":
    main()
