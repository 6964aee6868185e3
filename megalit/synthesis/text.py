"""Splitting and comparing texts."""

import re
from collections.abc import Callable, Iterator

from megalit.corpus.contamination import UNSPACED_RANGES

_CLOSING = r"[\"'”’)\]」』）]{0,4}"
# Full stops of scripts without spaces need none behind them.
_ENDS = rf"(?:[.!?]{{1,8}}{_CLOSING}\s+|[。！？]{{1,8}}{_CLOSING}\s*|\n+|$)"
_SENTENCES = re.compile(rf".+?{_ENDS}|\s+", re.DOTALL)
_WHOLE = re.compile(rf".*(?:[.!?]{_CLOSING}(?=\s|$)|[。！？]{_CLOSING})", re.DOTALL)
_WORDS = re.compile(rf"[^\W{UNSPACED_RANGES}]+|(?=\w)[{UNSPACED_RANGES}]")


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation.

    Where a script has no spaces between words, each letter counts as one, as for the contamination guard.
    """
    return _WORDS.findall(text.lower())


def ngrams(values: list[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of ``n`` values."""
    return zip(*(values[first:] for first in range(n)), strict=False)


def sentences(text: str) -> list[str]:
    """The text's sentences, each with the white space behind it: joined they are the text."""
    return _SENTENCES.findall(text)


def split(text: str, limit: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Parts of at most ``limit`` tokens that end where sentences end; joined they are the text.

    A sentence that is longer by itself is cut between words, and a word between characters.
    """
    if count_tokens(text) <= limit:
        return [text]
    parts: list[str] = []
    current, size = "", 0
    for sentence in sentences(text):
        pieces = [sentence] if count_tokens(sentence) <= limit else _cut(sentence, limit, count_tokens)
        for piece in pieces:
            length = count_tokens(piece)
            # Tokens of a whole are at most a few more than those of its parts; the sum may err, so the whole decides.
            if current and (size + length > limit and count_tokens(current + piece) > limit):
                parts.append(current)
                current, size = "", 0
            current += piece
            size += length
    return [*parts, current] if current else parts


def _cut(text: str, limit: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Halve a text between words until each part fits."""
    if count_tokens(text) <= limit or len(text) < 2:
        return [text]
    middle = len(text) // 2
    space = text.rfind(" ", 1, middle)
    at = space + 1 if space > 0 else middle
    return [*_cut(text[:at], limit, count_tokens), *_cut(text[at:], limit, count_tokens)]


def trim_to_sentence(text: str) -> str:
    """The text up to the end of its last whole sentence; empty where it has none."""
    match = _WHOLE.match(text)
    return match.group(0) if match else ""
