"""Contamination guard: training text that shares long word sequences with validation documents.

Held out means held out by id; this looks further, for passages that occur on both sides. The usual test is an
overlap of word 13-grams (GPT-3, arXiv 2005.14165, appendix C).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError

Action = Literal["report", "drop", "stop"]

Hashes = npt.NDArray[np.uint64]

_MULTIPLIER = 0x9E3779B97F4A7C15
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])
_BETWEEN_WORDS = re.compile(r"\W+")
# Thai to Khmer, kana, and ideographs: scripts without spaces between words.
UNSPACED_RANGES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = re.compile(f"[{UNSPACED_RANGES}]")
# Bytes hashed at a time; sequences across the edge of two such parts are not looked at.
_PART = 1 << 20


@dataclass(frozen=True)
class GuardSettings:
    """What counts as contamination, and what happens then.

    Attributes:
        words: length of the word sequences that are compared; 0 turns the guard off.
        threshold: a text is contaminated when a larger share of its sequences occurs in the validation set.
        action: ``report`` counts, ``drop`` leaves contaminated texts out and lists them, ``stop`` ends the build.
            Parallel passages are normal in some corpora, so nothing is dropped unasked.
    """

    words: int = 13
    threshold: float = 0.1
    action: Action = "report"


@dataclass
class Contamination:
    """What the guard found in one store.

    Attributes:
        texts: texts looked at.
        touched: texts with at least one shared sequence.
        contaminated: texts above the threshold: (document id, generation or None, share), all of them.
    """

    texts: int = 0
    touched: int = 0
    contaminated: list[tuple[str, int | None, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"texts": self.texts, "touched": self.touched, "contaminated": [list(c) for c in self.contaminated]}


class ContaminationGuard:
    """Knows the word sequences of the validation documents.

    Args:
        settings: length, threshold, action.
        validation: the texts of the validation documents.

    Raises:
        UserError: settings that cannot work.
    """

    def __init__(self, settings: GuardSettings, validation: Iterable[str]) -> None:
        if settings.words < 0 or not 0 <= settings.threshold <= 1:
            raise UserError(
                f"guard: words {settings.words} and threshold {settings.threshold}: "
                "choose 0 or more words and a threshold in [0, 1]"
            )
        self.settings = settings
        hashes = [_sequences(text, settings.words) for text in validation] if settings.words else []
        self._known = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, dtype=np.uint64)
        # Most sequences are in no validation text: a table by the leading bits tells so without a search.
        bits = min(30, max(16, (16 * len(self._known)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._possible = np.zeros(1 << bits, dtype=bool)
        self._possible[self._known >> self._shift] = True

    def share(self, text: str) -> float:
        """Share of a text's word sequences that occur in the validation set."""
        found = _sequences(text, self.settings.words) if len(self._known) else self._known
        if not len(found):
            return 0.0
        candidates = found[self._possible[found >> self._shift]]
        place = np.minimum(np.searchsorted(self._known, candidates), len(self._known) - 1)
        return float((self._known[place] == candidates).sum() / len(found))

    def filter(self, batches: Iterator[list[dict[str, Any]]], report: Contamination) -> Iterator[list[dict[str, Any]]]:
        """Pass rows with a ``text`` on, counting into ``report``; leave out what is to be dropped.

        Raises:
            UserError: a contaminated text, where the build is to stop.
        """
        for batch in batches:
            kept = []
            for row in batch:
                share = self.share(row["text"])
                report.texts += 1
                report.touched += share > 0
                if share > self.settings.threshold:
                    report.contaminated.append((row["document_id"], row.get("generation"), round(share, 4)))
                    if self.settings.action == "stop":
                        raise UserError(
                            f"{share:.0%} of the {self.settings.words}-word sequences of '{row['document_id']}' "
                            "occur in the validation set: hold it out too, raise guard.threshold, or choose another "
                            "guard.action"
                        )
                    if self.settings.action == "drop":
                        continue
                kept.append(row)
            if kept:
                yield kept


def _sequences(text: str, words: int) -> Hashes:
    """Hashes of all sequences of ``words`` words, ``(words in text - words + 1,)``.

    A word is a run of letters, digits and underscores, in lower case; where a script has no spaces between words,
    each character counts as one.
    """
    if not text.isascii():
        text = UNSPACED.sub(r" \g<0> ", _BETWEEN_WORDS.sub(" ", text))
    data = np.frombuffer(text.lower().encode(), dtype=np.uint8)
    parts = [_part_sequences(data[begin : begin + _PART], words) for begin in range(0, len(data), _PART)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _part_sequences(data: npt.NDArray[np.uint8], words: int) -> Hashes:
    inside = _IN_WORD[data]
    # Words and the one byte behind each: the gap counts, what stands in it does not.
    keep = inside.copy()
    keep[1:] |= inside[:-1]
    data, inside = data[keep], inside[keep]
    starts = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    if len(starts) < words:
        return np.empty(0, dtype=np.uint64)
    # A polynomial hash modulo 2^64 of any range of bytes is a difference of prefix sums, moved to the origin.
    values, powers, inverse_powers = _hash_tables()
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(values[data] * powers[: len(data)], out=sums[1:])
    ends = np.append(starts[words:], len(data))
    starts = starts[: len(ends)]
    hashes: Hashes = (sums[ends] - sums[starts]) * inverse_powers[starts]
    return hashes


@cache
def _hash_tables() -> tuple[Hashes, Hashes, Hashes]:
    """A random value of each byte (0 outside words), and powers of an odd number and of its inverse modulo 2^64."""
    values = np.random.default_rng(13).integers(1, 2**64, size=256, dtype=np.uint64)
    base = np.array([_MULTIPLIER, pow(_MULTIPLIER, -1, 2**64)], dtype=np.uint64)
    powers = np.multiply.accumulate(np.repeat(base[:, None], _PART, axis=1), axis=1)
    return np.where(_IN_WORD, values, np.uint64(0)), powers[0], powers[1]
