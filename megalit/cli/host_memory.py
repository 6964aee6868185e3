"""How the C library keeps memory between the steps of a run on CPU."""

import ctypes

# Of <malloc.h>; see mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    By itself it gives large tensors and the heap's end back to the system at once, and the kernel hands the same
    pages out again, cleared and one by one: tens of thousands of page faults a step, some percent of its time.
    Does nothing where the C library has no such settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
