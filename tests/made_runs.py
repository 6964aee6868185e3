"""Run folders as training would leave them, for tests of what reads them: no model is behind the losses."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from megalit.files import write_json
from megalit.scaling.records import CurvePoint, RunRecord

REAL_TOKENS = 1_000_000
CONTEXT = 1024
BATCH = 16
TOKENS_PER_GENERATION = 0.8
KINDS = {"simple": "Simple", "stitched": "Stitched", "latent_thoughts": "LatentThoughts", "real": "Real"}
CLASSES = {"simple": "Simple", "stitched": "Stitched", "latent_thoughts": "LatentThought", "real": "Real"}


def make_run(
    folder: Path,
    stream: str = "stitched",
    generations: int = 4,
    real_epochs: float = 8,
    real_fraction: float = 1.0,
    seed: int = 0,
    loss: float | None = None,
    real_document: str = "last",
    weight_decay: float = 0.4,
    evaluated: bool = True,
    status: str = "finished",
) -> Path:
    """Write the record (and evaluation) of one run; its loss is a law of its settings with noise of the seed."""
    noise = float(np.random.default_rng([seed, *folder.name.encode()]).normal(0, 0.004))
    made = loss if loss is not None else _loss(stream, generations, real_epochs, real_fraction, real_document) + noise
    record = _record(folder, stream, generations, real_epochs, real_fraction, seed, real_document, weight_decay)
    done = 1.0 if status == "finished" else 0.4
    tokens = record.plan["steps"] * BATCH * CONTEXT
    record.status = status  # type: ignore[assignment]
    record.steps = int(record.plan["steps"] * done)
    shares = np.linspace(0.02, 1, 50)
    gap = 0.25 * math.log2(1 + real_epochs) / 3
    record.training_curve = [
        CurvePoint(
            int(record.plan["steps"] * s), int(tokens * s), {"train": made - gap * s + 3.5 * math.exp(-6 * s**0.6)}
        )
        for s in shares[shares <= done]
    ]
    record.validation_curve = [
        CurvePoint(
            int(record.plan["steps"] * s), int(tokens * s), {"iid": made + 2.5 * math.exp(-5 * s) - 2.5 * math.exp(-5)}
        )
        for s in np.linspace(0.1, 1, 10)
        if s <= done + 1e-9
    ]
    last = record.validation_curve[-1].losses["iid"]
    record.losses = {"iid": {"nats_per_token": last, "bits_per_byte": last / math.log(2) / 4.1}}
    record.write(folder)
    if evaluated:
        write_json(folder / "evaluation.json", _evaluation(last, stream))
    return folder


def make_ensemble(folder: Path, members: list[Path], losses: list[float], suite: str = "iid") -> Path:
    """Write the losses of an ensemble, averaged both ways; logits are a little worse."""
    worse = [loss + 0.006 * (1 - 1 / k) for k, loss in enumerate(losses, start=1)]
    write_json(
        folder / "ensemble.json",
        {
            "format": 1,
            "members": [str(member) for member in members],
            "suites": {suite: {"averages": {"probabilities": losses, "logits": worse}}},
        },
    )
    return folder


def make_experiment(folder: Path) -> None:
    """Some 40 runs: tuned real runs on nested subsets, two streams by G and seeds, epochs, orders, ensembles."""
    for fraction in (0.25, 0.5, 1.0):
        for seed in (0, 1, 2):
            make_run(folder / f"real-{fraction}-{seed}", "real", 0, 16, fraction, seed)
    for stream in ("simple", "stitched"):
        for generations in (1, 2, 4, 8, 11):
            seeds = (0, 1, 2) if generations in (4, 11) else (0,)
            for seed in seeds:
                make_run(folder / f"{stream}-{generations}-{seed}", stream, generations, 16, seed=seed)
        for epochs in (4, 8, 32):
            make_run(folder / f"{stream}-4-epochs-{epochs}", stream, 4, epochs)
    for epochs in (4, 8, 32):
        make_run(folder / f"real-epochs-{epochs}", "real", 0, epochs)
    make_run(folder / "stitched-first", "stitched", 4, 16, real_document="first")
    make_run(folder / "stitched-absent", "stitched", 4, 16, real_document="absent")
    make_run(folder / "thoughts", "latent_thoughts", 8, 16)
    for stream, generations, base in (("real", 0, 3.42), ("simple", 11, 3.33), ("stitched", 11, 3.31)):
        members = [
            make_run(folder / f"ensemble-{stream}" / f"member-{k}", stream, generations, 32, seed=k, weight_decay=0.2)
            for k in range(5)
        ]
        random = np.random.default_rng(generations)
        losses = [base + 0.14 / k + float(random.normal(0, 0.001)) for k in range(1, 6)]
        make_ensemble(folder / f"ensemble-{stream}", members, losses)


def _loss(stream: str, generations: int, epochs: float, fraction: float, real_document: str) -> float:
    best = {"real": 0.0, "simple": 0.13, "stitched": 0.16, "latent_thoughts": 0.17}[stream]
    gain = best * (1 - 0.75 / (1 + 0.5 * generations)) if generations else 0.0
    order = {"last": 0.0, "first": 0.006, "absent": 0.011}[real_document]
    return 3.2 + 0.36 / fraction**0.35 - gain + order + 0.02 * math.log2(epochs / 16) ** 2


def _evaluation(loss: float, stream: str) -> dict[str, Any]:
    slope = {"real": 0.05, "simple": 0.055, "stitched": 0.065, "latent_thoughts": 0.065}[stream]
    positions = [32 * (k + 0.5) for k in range(32)]
    iid = {
        "nats_per_token": loss,
        "bits_per_byte": loss / math.log(2) / 4.1,
        "by_position": [[x, loss - 0.1 + slope * 10 / math.sqrt(x)] for x in positions],
        "by_context_length": [[x, loss + slope * math.log2(1024 / x)] for x in (128, 256, 512, 1024)],
    }
    long_context = {
        "nats_per_token": loss + 0.35 - slope,
        "bits_per_byte": (loss + 0.35 - slope) / math.log(2) / 4.0,
        "by_position": [],
        "by_context_length": [],
    }
    return {"format": 1, "suites": {"iid": iid, "long context": long_context}, "tasks": {"piqa": {"accuracy": 0.5}}}


def _record(
    folder: Path, stream: str, generations: int, epochs: float, fraction: float, seed: int, order: str, decay: float
) -> RunRecord:
    real_tokens = round(REAL_TOKENS * fraction)
    synthetic = round(real_tokens * TOKENS_PER_GENERATION * generations)
    kept = 0 if order == "absent" else real_tokens
    mix = 0.0 if stream == "real" else 0.75
    steps = math.ceil(real_tokens * epochs / (1 - mix) / (BATCH * CONTEXT))
    streams = [_stream("real", real_tokens, 0.0, 1 - mix, steps)]
    orderings: list[dict[str, Any]] = [{"kind": "Real", "name": "real", "shares": [str(1 - mix)]}]
    settings: dict[str, Any] = {}
    if stream != "real":
        streams.append(_stream(stream, kept + synthetic, synthetic / (kept + synthetic), mix, steps))
        settings = {"generations": generations}
        settings |= {"real_document": order} if stream == "stitched" else {}
        orderings.append({"kind": KINDS[stream], "name": stream, "shares": [str(mix)], **settings})
    config = {
        "seed_everything": seed,
        "run": str(folder),
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": None, "default_root_dir": str(folder)},
        "model": {"shape": "tiny", "learning_rate": 0.003, "weight_decay": decay, "seed": seed},
        "data": {
            "class_path": f"megalit.streams.{CLASSES[stream]}Stream",
            "init_args": {
                # What latent thoughts are G of is in the stores, not in the configuration.
                **({} if stream == "latent_thoughts" else settings),
                **({} if stream == "real" else {"synthetic_fraction": mix}),
                "stores": "data/stores",
                "context_length": CONTEXT,
                "global_batch": BATCH,
                "real_epochs": epochs,
                "real_fraction": fraction,
                "seed": seed,
            },
        },
    }
    plan = {
        "streams": streams,
        "context_length": CONTEXT,
        "global_batch": BATCH,
        "steps": steps,
        "unique_real_tokens": real_tokens,
        "settings": {"stores": [{"real": "ab12"}], "tokenizer": "cd34", "seed": seed, "streams": orderings},
    }
    seen = {part["name"]: part["windows"] * CONTEXT for part in streams}
    return RunRecord(
        status="finished",
        config=config,
        parameters={"total": 1_377_408, "non_embedding": 853_120},
        plan=plan,
        tokens_seen=seen,
        epochs={part["name"]: part["windows"] / part["windows_per_epoch"] for part in streams},
        unique_real_tokens=real_tokens,
        synthetic_share=sum(part["windows"] * part["synthetic_fraction"] for part in streams) / (steps * BATCH),
        flops=6.0 * 1_377_408 * sum(seen.values()),
        losses={},
        wall_seconds=1200.0,
        environment={"devices": "1 x cpu"},
        seeds={"model": seed, "data": seed},
        steps=steps,
    )


def _stream(name: str, tokens: int, synthetic: float, share: float, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "share": share,
        "unique_tokens": tokens,
        "synthetic_fraction": synthetic,
        "windows_per_epoch": math.ceil(tokens / CONTEXT),
        "windows": round(steps * BATCH * share),
    }
