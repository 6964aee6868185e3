"""Peak memory of a block of code, without mapped files, which the system can drop at any time."""

import threading
from pathlib import Path


class PeakMemory:
    """Largest anonymous memory of this process inside the block, above what it had, in ``megabytes``."""

    def __enter__(self) -> "PeakMemory":
        self._base = self.peak = _anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, _anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.megabytes = (self.peak - self._base) / 1e6


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this benchmark needs Linux")
