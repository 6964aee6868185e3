"""Training steps on one NVIDIA GPU: tokens per second, MFU, peak memory, by attention, head and compilation.

Needs no network and no data: the model's package and torch are enough, from the repository's root:

    PYTHONPATH=. python benchmarks/gpu_train.py [--output results.json] [--only "300m, 4,096"]

Each case runs in a process of its own. A backend that is not installed is listed with the reason. Prints a table, and
one JSON line at the end; ``--smoke`` runs a small shape on the CPU to see that the script works.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

VOCABULARY = 128_256


@dataclass(frozen=True)
class Case:
    """One configuration to be measured."""

    shape: str
    context: int
    micro_batch: int
    attention: str = "auto"
    head: str = "chunked"
    compile: bool = True
    checkpointing: bool = False
    masked: bool = False

    @property
    def name(self) -> str:
        parts = [self.shape, f"{self.context:,}", f"{self.micro_batch} windows", self.attention, f"{self.head} head"]
        parts += ["compiled"] * self.compile + ["checkpointing"] * self.checkpointing + ["masked"] * self.masked
        return ", ".join(parts)


CASES = [
    *(Case("300m", 4096, 16, attention) for attention in ("auto", "flash2", "flash3", "flash4", "flex")),
    Case("300m", 4096, 16, compile=False),
    # The plain head keeps all logits, so it is compared where they fit.
    Case("300m", 4096, 8),
    Case("300m", 4096, 8, head="plain"),
    Case("300m", 4096, 16, masked=True),
    *(Case("1.5b", 4096, 8, attention) for attention in ("auto", "flash3", "flash4")),
    *(Case("300m", 32_768, 2, attention) for attention in ("auto", "flash3", "flash4")),
    Case("300m", 65_536, 1, checkpointing=True),
    Case("300m", 131_072, 1, checkpointing=True),
]
SMOKE = [Case("nano", 64, 2, compile=False), Case("nano", 64, 2, compile=False, head="plain")]


def measure(case: Case, device: torch.device, warm_up: int = 4, steps: int = 10) -> dict[str, Any]:
    """Seconds of a step (median) and peak memory of one case."""
    from megalit.modeling.language_model import LanguageModel
    from megalit.scaling.devices import mfu, peak_flops

    vocabulary = VOCABULARY if device.type == "cuda" else 512
    model = LanguageModel(
        case.shape,
        vocabulary_size=vocabulary,
        attention=case.attention,  # type: ignore[arg-type]
        compile=case.compile,
        gradient_checkpointing=case.checkpointing,
        cross_document_attention=not case.masked,
        bos=0,
        seed=0,
    )
    model.configure_model()
    model.to(device)
    model.check_device(device, "bf16-mixed")
    optimizer = model.configure_optimizers()
    size = (case.micro_batch, case.context)
    batch = {
        name: torch.randint(1, vocabulary, size, dtype=torch.int32, device=device) for name in ("tokens", "targets")
    }
    batch["tokens"][:, ::1243] = 0  # documents of the paper's mean length

    def loss() -> torch.Tensor:
        if case.head == "chunked":
            return model.term_sums(batch).sum() / batch["targets"].numel()
        hidden, rows = model.hidden_and_rows(batch)
        return F.cross_entropy(model.lm_head(hidden).float(), rows["targets"])

    def step() -> float:
        began = time.perf_counter()
        # Lightning's keeps no copies of the weights either.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            value = loss()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # The training step looks at the norm too, and so waits for the device.
        assert torch.isfinite(norm)
        return time.perf_counter() - began

    for _ in range(warm_up):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = sorted(step() for _ in range(steps))[steps // 2]
    rate = case.micro_batch * case.context / seconds
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    used = mfu(model.flops_per_token(case.context), rate, name, 1)
    return {
        "tokens_per_second": round(rate),
        "seconds_per_step": round(seconds, 4),
        "mfu": None if used is None else round(used, 4),
        "peak_flops": peak_flops(name),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }


def run(case: Case, device: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(case)), "--device", device]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        # What torch.compile says last is advice.
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return {"error": (errors or lines)[-1][:300]}
    measured: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return measured


def line(cases: dict[str, dict[str, Any]], device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return json.dumps(
        {
            "benchmark": "gpu_train",
            "device": name,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cases": cases,
        }
    )


def known(output: str | None, device: str) -> dict[str, dict[str, Any]]:
    """Cases that the file holds from calls before, on such a device with this torch."""
    if output is None or not Path(output).exists():
        return {}
    before = json.loads(Path(output).read_text())
    now = json.loads(line({}, device))
    same = all(before[name] == now[name] for name in ("device", "torch", "cuda"))
    return dict(before["cases"]) if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="file for the JSON line; the cases that it holds stay")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--measure")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Case(**json.loads(arguments.measure)), torch.device(arguments.device))))
        return
    device = "cpu" if arguments.smoke else arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU; --smoke runs a small shape on the CPU")
    results: dict[str, dict[str, Any]] = known(arguments.output, device)
    for case in SMOKE if arguments.smoke else CASES:
        if arguments.only and arguments.only not in case.name:
            continue
        results[case.name] = found = run(case, device)
        if "error" in found:
            print(f"{case.name:<60} {found['error']}", flush=True)
        else:
            share = "" if found["mfu"] is None else f"{found['mfu']:.1%} MFU, {found['peak_memory_gb']} GB"
            print(f"{case.name:<60} {found['tokens_per_second']:>10,} tokens/s {share}", flush=True)
        # After each case, because the time on a machine may end before the cases do.
        if arguments.output:
            Path(arguments.output).write_text(line(results, device) + "\n")
    print(line(results, device))


if __name__ == "__main__":
    main()
