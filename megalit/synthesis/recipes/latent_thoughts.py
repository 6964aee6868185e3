"""Latent thoughts: rationales that lead from a document's beginning to its continuation.

The idea is that of "Reasoning to Learn from Latent Thoughts" (arXiv 2503.18866); the megadocs paper
(arXiv 2603.18534) stretches a document by G of them at G split points. It does not say where it splits: near-equal
parts are our choice. The wording of the prompt is ours.
"""

import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

from megalit.corpus.contamination import UNSPACED
from megalit.errors import UserError
from megalit.files import fingerprint
from megalit.synthesis.items import Generated, Item, Kind, Recipe, Rejected, Steps, TokenCounter, source_of
from megalit.synthesis.prompts import Prompt, prompt
from megalit.synthesis.requests import ask

# Characters; more than almost any token has, so that of a long text only a part is looked at.
_LONGEST_TOKEN = 16
# Characters of a word that is cut off at a limit; where there is no space for longer, none is looked for.
_LONGEST_WORD = 100
# Of Thai and Lao, whose Unicode category is that of letters.
_VOWELS_BEHIND = "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3"
_VOWELS_BEFORE = "\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4"


@dataclass(frozen=True)
class LatentThoughts(Recipe):
    """A thought at each of ``splits`` places in the document.

    Attributes:
        splits: places, which cut the document into near-equal parts between words.
        prefix_tokens: at most that much of the text before a place stands in the prompt, its end; null is all.
        suffix_tokens: at most that much of the text behind it, its beginning; null is all.
        prompt: template that uses ``prefix`` and ``suffix``.
    """

    splits: int = 4
    prefix_tokens: int | None = 4096
    suffix_tokens: int | None = 2048
    prompt: str = "latent_thought"

    kind: ClassVar[Kind] = "thoughts"

    @property
    def name(self) -> str:
        return "thought"

    @property
    def version(self) -> str:
        settings = [Prompt(self.prompt).version, self.splits, self.prefix_tokens, self.suffix_tokens]
        return f"{self.name} {fingerprint(settings)}"

    def check(self) -> None:
        for name in ("splits", "prefix_tokens", "suffix_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"recipe.{name} is {value}: choose at least 1")
        Prompt(self.prompt).render(prefix="", suffix="")

    def indices(self, count: int) -> range:
        """One for each place: the number of places decides, because those of another number lie elsewhere."""
        return range(self.splits)

    def run(self, item: Item, count_tokens: TokenCounter) -> Steps:
        text = source_of(item).text
        places = split_places(text, self.splits)
        if item.index >= len(places):
            return Rejected("the document is too short for that many splits", final=True)
        place = places[item.index]
        prefix = _last(text[:place], self.prefix_tokens, count_tokens)
        suffix = _first(text[place:], self.suffix_tokens, count_tokens)
        (completion,) = yield [ask(prompt(self.prompt).render(prefix=prefix, suffix=suffix), "thought")]
        return Generated(completion.text.strip(), place)


def split_places(text: str, count: int) -> list[int]:
    """Character offsets that cut a text into ``count + 1`` near-equal parts, each at the start of a word.

    In scripts without spaces it is the start of a character. Fewer where the text has too few words.
    """
    starts = [at for at in range(1, len(text)) if _starts_word(text, at)]
    places: list[int] = []
    free = 0  # starts from here on lie behind the last place
    for number in range(1, count + 1):
        if free == len(starts):
            break
        target = number * len(text) / (count + 1)
        right = bisect_left(starts, target, lo=free)
        nearest = min(range(max(free, right - 1), min(right + 1, len(starts))), key=lambda n: abs(starts[n] - target))
        places.append(starts[nearest])
        free = nearest + 1
    return places


def _starts_word(text: str, at: int) -> bool:
    if text[at - 1].isspace():
        return not text[at].isspace()
    if not UNSPACED.match(text, at):
        return False
    # Not between a letter and a mark or vowel that belongs to it.
    is_mark = unicodedata.category(text[at]).startswith("M") or text[at] in _VOWELS_BEHIND
    return not is_mark and text[at - 1] not in _VOWELS_BEFORE


def _last(text: str, limit: int | None, count_tokens: TokenCounter) -> str:
    """The longest end of a text, from a word on, that has at most ``limit`` tokens."""
    if limit is None:
        return text
    text = text[-limit * _LONGEST_TOKEN :]
    if count_tokens(text) <= limit:
        return text
    low, high = 0, len(text)  # text[high:] fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count_tokens(text[middle:]) <= limit else (middle, high)
    space = text.find(" ", high, high + _LONGEST_WORD)
    return (text[space + 1 :] if space >= 0 else "") or text[high:]


def _first(text: str, limit: int | None, count_tokens: TokenCounter) -> str:
    """The longest beginning of a text, up to a word's end, that has at most ``limit`` tokens."""
    if limit is None:
        return text
    text = text[: limit * _LONGEST_TOKEN]
    if count_tokens(text) <= limit:
        return text
    low, high = 0, len(text)  # text[:low] fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_tokens(text[:middle]) <= limit else (low, middle)
    space = text.rfind(" ", max(0, low - _LONGEST_WORD), low)
    return text[:space] if space > 0 else text[:low]
