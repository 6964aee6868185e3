"""To know that memory ran out, whatever is raised then."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megalit.errors import UserError

# PyTorch's allocator has an error of its own. Triton and torch.compile, which load kernels, and cuBLAS and cuDNN, which
# make handles and workspaces, raise plain ones.
SIGNS = ("out of memory", "OutOfMemoryError", "ALLOC_FAILED")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def no_room(what: str, remedy: str) -> Callable[[], UserError]:
    """The error for something that lies in memory as a whole, to be given to :func:`told_out_of_memory`."""
    return lambda: UserError(f"out of memory for {what}: {remedy}")


@contextmanager
def told_out_of_memory(explain: Callable[[], UserError]) -> Iterator[None]:
    """Raise what ``explain`` gives where memory runs out within."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise explain() from error
