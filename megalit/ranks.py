"""The processes that train or measure together: torch's default process group, where there is one."""

from typing import Any, TypeVar

import torch

_Value = TypeVar("_Value")


def has_group() -> bool:
    """Whether this process is in a group, be it alone."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def ranks() -> tuple[int, int]:
    """This process's rank in the group, and the group's size; (0, 1) where there is none."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if has_group() else (0, 1)


def of_all_ranks(value: _Value) -> list[_Value]:
    """Each rank's value, by rank, on all of them; every rank must call it."""
    if not has_group():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
