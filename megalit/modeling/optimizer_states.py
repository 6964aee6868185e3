"""Optimizers' states by the names of parameters, so that any strategy goes on with them."""

from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy


def by_name(
    state: dict[str, Any],
    trainer: lightning.Trainer,
    model: lightning.LightningModule,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """An optimizer's state by parameter name, from one by parameter number; one that is by name stays."""
    if not _has(state, int):
        return state
    names = _numbered(trainer, model, optimizer)
    return {
        "state": {names[number]: value for number, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }


def by_position(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by parameter number, as torch's optimizers have it, from one by name; another stays."""
    if not _has(state, str):
        return state
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: place for place, name in enumerate(names)}
    return {
        "state": {number[name]: value for name, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }


def _numbered(
    trainer: lightning.Trainer, model: lightning.LightningModule, optimizer: torch.optim.Optimizer
) -> list[str]:
    """Names of the parameters in the order in which an optimizer's state counts them.

    Torch's optimizers count them by their groups, Lightning's sharded strategy by the model, where it gathers them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if isinstance(trainer.strategy, ModelParallelStrategy):
        return list(names.values())
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _has(state: dict[str, Any], kind: type) -> bool:
    """Whether a state's parameters go by numbers (``int``) or names (``str``)."""
    return any(isinstance(key, kind) for group in state.get("param_groups", ()) for key in group["params"])
