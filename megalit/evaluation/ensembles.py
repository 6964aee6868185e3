"""Ensembles: losses of the average of K = 1 … n members, weights and selections of members.

An average of probabilities needs only each member's log-probability of the targets, which is computed once per
suite and kept in a file (4 bytes a token). An average of logits needs all members at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from megalit.errors import UserError
from megalit.evaluation.checkpoints import find_checkpoint
from megalit.evaluation.losses import Losses, Suite, batches, check_finite, device_of, inference, member_logits
from megalit.files import fingerprint, write_atomic
from megalit.modeling.decoder import Decoder

Floats = npt.NDArray[np.float64]

# Folder, beside a member's checkpoints, of its losses of each target.
TOKEN_LOSSES = "token_losses"

# The fixed point of the weights: no weight moves by more in a round, or so many rounds.
_TOLERANCE, _ROUNDS = 1e-6, 5_000
# A few weights are known well from so many targets; more only take time.
_CHOSEN_TARGETS = 500_000


# Losses of the members, kept in files ------------------------------------------------------------------


def losses_file(member: Path, suite_name: str, suite_fingerprint: str, precision: str) -> Path:
    """Where a member's losses on a suite's targets are kept: beside its checkpoints.

    Args:
        member: a run's folder, a checkpoint, or a folder in the Hugging Face format.
        suite_name: part of the name, to be readable.
        suite_fingerprint: of the suite's windows.
        precision: that the member was run in.
    """
    found = find_checkpoint(member)
    weights = found / "model.safetensors" if (found / "model.safetensors").exists() else found
    changed = weights.stat()
    key = fingerprint([found.name, changed.st_mtime_ns, changed.st_size, suite_fingerprint, precision])
    folder = found.parent.parent if found.suffix == ".ckpt" else found
    return folder / TOKEN_LOSSES / f"{suite_name}-{key}.npy"


def kept_losses(path: Path, targets: int, compute: Callable[[], Losses]) -> Losses:
    """The losses in a file, which is written first where it is missing: float32, ``(targets,)``, mapped."""
    if not path.exists():
        losses = compute()
        write_atomic(path, lambda file: np.save(file, losses))
    found: Losses = np.load(path, mmap_mode="r")
    if found.shape != (targets,):
        raise UserError(f"{path} does not hold the losses of this suite: remove it")
    return found


# Averages ----------------------------------------------------------------------------------------------


def mixture_losses(losses_MN: npt.NDArray[np.floating]) -> Floats:
    """Loss of each target under the mean of the first K members' probabilities: ``(M, N)``, K = 1 … M.

    ``losses_MN``: each member's negative log-likelihood of each target, in nats.
    """
    likelihood_MN = np.logaddexp.accumulate(-np.asarray(losses_MN, dtype=np.float64), axis=0)
    counts = np.arange(1, len(likelihood_MN) + 1)
    mixed: Floats = np.log(counts)[:, None] - likelihood_MN
    return mixed


def probability_curve(losses: Sequence[Losses], part: int = 2**20) -> list[float]:
    """Mean loss of the average of the first K members' probabilities, for K = 1 … M, in nats per token."""
    total = np.zeros(len(losses))
    for first in range(0, len(losses[0]), part):
        total += mixture_losses(np.stack([own[first : first + part] for own in losses])).sum(axis=1)
    return [float(value) for value in total / len(losses[0])]


def logit_curve(models: Sequence[Decoder], suite: Suite, batch: int = 8, precision: str = "32-true") -> list[float]:
    """Mean loss of the average of the first K members' raw logits, for K = 1 … M, in nats per token.

    The average of the paper (arXiv 2509.14786, 2603.18534). All members are resident and run batch by batch.

    Args:
        models: on one device.
        suite: what to predict.
        batch: windows in a pass.
        precision: Lightning's name; mixed ones run under autocast.

    Raises:
        UserError: vocabularies of different sizes, or a batch that does not fit into memory.
    """
    total = torch.zeros(len(models), dtype=torch.float64)
    counts = torch.arange(1, len(models) + 1)
    with inference(models, precision):
        for numbers, part in batches(suite, batch, device_of(models[0])):
            for logits_MNV, targets_N in member_logits(models, part):
                mean_MNV = logits_MNV.cumsum(0).div_(counts.to(logits_MNV.device)[:, None, None])
                of_targets_MN = mean_MNV.gather(2, targets_N.expand(len(models), -1)[..., None])[..., 0]
                losses_MN = mean_MNV.logsumexp(-1) - of_targets_MN
                check_finite(losses_MN, numbers)
                total += losses_MN.sum(1).cpu().double()
    return [float(value) for value in total / suite.targets]


# Weights and selections --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Members chosen on one part of a suite's windows, with their losses on the other part.

    Attributes:
        equal: loss of the average of all members.
        weights: of the members in the average of probabilities, with the sum 1.
        weighted: its loss.
        members: numbers of the members of the best average of some, in the order in which they were added.
        selected: its loss.
    """

    equal: float
    weights: list[float]
    weighted: float
    members: list[int]
    selected: float


def select(losses: Sequence[Losses], window_targets: npt.NDArray[np.int64]) -> Selection:
    """Find weights, and the best few members, on the first half of the windows, and measure both on the second.

    Args:
        losses: each member's losses on the suite's targets.
        window_targets: how many of the targets belong to each window.
    """
    # Halves, not every other window: neighbours share a document.
    held_out = np.repeat(np.arange(len(window_targets)) < len(window_targets) / 2, window_targets)
    every = -(-int(held_out.sum()) // _CHOSEN_TARGETS)
    chosen_MN = np.stack([np.asarray(own[held_out][::every], dtype=np.float64) for own in losses])
    measured_MN = np.stack([np.asarray(own[~held_out], dtype=np.float64) for own in losses])
    weights = mixture_weights(chosen_MN)
    members = greedy_members(chosen_MN)
    return Selection(
        equal=float(mixture_losses(measured_MN)[-1].mean()),
        weights=[float(weight) for weight in weights],
        weighted=_weighted_loss(measured_MN, weights),
        members=members,
        selected=float(mixture_losses(measured_MN[members])[-1].mean()),
    )


def mixture_weights(losses_MN: Floats) -> Floats:
    """Weights ``(M,)`` that give the mixture of probabilities its lowest loss.

    The log-likelihood of a mixture is concave in its weights, so that expectation-maximization (Dempster, Laird and
    Rubin 1977) ends at its maximum.
    """
    # The best member of each target as reference: no exponent overflows.
    likelihood_MN = np.exp(losses_MN.min(0) - losses_MN)
    weights = np.full(len(losses_MN), 1 / len(losses_MN))
    for _ in range(_ROUNDS):
        better = weights * (likelihood_MN / (weights @ likelihood_MN)).mean(1)
        moved = np.abs(better - weights).max()
        weights = better / better.sum()
        if moved < _TOLERANCE:
            break
    return weights


def greedy_members(losses_MN: Floats) -> list[int]:
    """Members in the order in which each lowers the loss of the average of probabilities most, while it falls.

    Ensemble selection from libraries of models (Caruana et al., 2004), without replacement.
    """
    chosen: list[int] = []
    best, mixed_N = math.inf, np.full(losses_MN.shape[1], -math.inf)
    while len(chosen) < len(losses_MN):
        trials = {
            member: np.logaddexp(mixed_N, -losses_MN[member])
            for member in range(len(losses_MN))
            if member not in chosen
        }
        losses = {member: math.log(len(chosen) + 1) - float(mixed.mean()) for member, mixed in trials.items()}
        member = min(losses, key=lambda number: losses[number])
        if losses[member] >= best:
            break
        chosen.append(member)
        best, mixed_N = losses[member], trials[member]
    return chosen


def _weighted_loss(losses_MN: Floats, weights: Floats) -> float:
    least_N = losses_MN.min(0)
    return float((least_N - np.log(weights @ np.exp(least_N - losses_MN))).mean())
