"""What a journal says is done, begun, or still to be tried."""

import sys
from collections import Counter
from collections.abc import Iterable, Set
from typing import Any

from megalit.synthesis.journal import Accepted, Declined, Ended, Place, Record, Settings


class Ledger:
    """The state of every generation that a journal knows of.

    Args:
        attempts: so many tries each request of a generation has.
        settings: fingerprint of the settings of now: attempts that were declined under others count no more.
        redo: generations that were made with other settings count as not made.
        only: remember these identities alone; None for all.
        retry_refused: what the model refused so far counts as not tried.

    Attributes:
        settings: that journals name, by fingerprint.
        sample_tokens: of samples, which no document counts, tokens by index; none of those that were given up.
        ended: the parts of samples that shards have made.
    """

    def __init__(
        self,
        attempts: int,
        settings: str,
        redo: bool = False,
        only: Set[bytes] | None = None,
        retry_refused: bool = False,
    ) -> None:
        self._attempts = attempts
        self._settings = settings
        self._redo = redo
        self._only = only
        self._retry_refused = retry_refused
        self._accepted: set[bytes] = set()
        self._otherwise: dict[bytes, str] = {}
        self._tries: dict[bytes, int] = {}
        self._refused: set[bytes] = set()
        # Where they stand, not what they say: there may be millions of which none is needed.
        self._completions: dict[bytes, dict[str, Place]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.sample_tokens: dict[int, int] = {}
        self.ended: set[Ended] = set()

    def add(self, records: Iterable[tuple[Place, Record]]) -> None:
        """Take in records, in any order and however often."""
        for place, record in records:
            if isinstance(record, Ended):
                self.ended.add(record)
                continue
            if isinstance(record, Settings):
                self.settings[record.fingerprint] = record.value
                continue
            if self._only is not None and bytes.fromhex(record.of) not in self._only:
                continue
            if isinstance(record, Accepted):
                if self.counts(record):
                    self.accept(record)
            elif isinstance(record, Declined):
                if record.settings == self._settings and not (self._retry_refused and record.refused):
                    self.decline(record)
            elif bytes.fromhex(record.of) not in self._accepted:
                of = self._completions.setdefault(bytes.fromhex(record.of), {})
                of[record.key] = place

    def counts(self, record: Accepted) -> bool:
        """Whether a generation counts as made."""
        return not self._redo or record.settings == self._settings

    def accept(self, record: Accepted) -> None:
        key = bytes.fromhex(record.of)
        # Of one that was made twice, that of the settings of now stands, or the one that --redo made later.
        if record.settings == self._settings:
            self._otherwise.pop(key, None)
        elif key not in self._accepted or key in self._otherwise:
            self._otherwise[key] = sys.intern(record.settings)
        self._accepted.add(key)
        self._tries.pop(key, None)
        self._completions.pop(key, None)
        if record.document is None and not self.sample_tokens.get(record.index):
            # At least one, so that their number ends.
            self.sample_tokens[record.index] = max(1, record.tokens)

    def decline(self, record: Declined) -> None:
        key = bytes.fromhex(record.of)
        if key not in self._accepted:
            if record.refused:
                self._refused.add(key)
            else:
                self._refused.discard(key)
            tried = self._attempts if record.final else record.attempt + 1
            self._tries[key] = max(self._tries.get(key, 0), tried)
            if self._tries[key] >= self._attempts:
                self._completions.pop(key, None)
                self.sample_tokens.setdefault(record.index, 0)

    @property
    def accepted(self) -> int:
        """Generations made so far."""
        return len(self._accepted)

    def made_otherwise(self) -> Counter[str]:
        """Generations that count and were made with other settings, by their fingerprint."""
        return Counter(self._otherwise.values())

    def is_done(self, identity: str) -> bool:
        """Made, or tried as often as allowed."""
        key = bytes.fromhex(identity)
        return key in self._accepted or self._tries.get(key, 0) >= self._attempts

    def is_refused(self, identity: str) -> bool:
        """Whether the last attempt was refused by the model."""
        return bytes.fromhex(identity) in self._refused

    def next_attempt(self, identity: str) -> int:
        return self._tries.get(bytes.fromhex(identity), 0)

    def completions(self, identity: str) -> dict[str, Place]:
        """Places of earlier processes' completions for a generation that is not finished, by request key."""
        return self._completions.get(bytes.fromhex(identity), {})
