"""Rephrases: each generation is the document said anew by an instruct model.

The idea and the four styles are those of "Rephrase the Web" (WRAP, arXiv 2401.16380, section 3); the megadocs paper
(arXiv 2603.18534) takes the Wikipedia style. The wording of the prompts is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from megalit.errors import UserError
from megalit.files import fingerprint
from megalit.synthesis.items import Generated, Item, Recipe, Steps, TokenCounter, source_of
from megalit.synthesis.prompts import Prompt, prompt
from megalit.synthesis.requests import Completion, ask
from megalit.synthesis.text import split


@dataclass(frozen=True)
class Rephrase(Recipe):
    """Say the document anew.

    Attributes:
        styles: prompts, each ``wikipedia``, ``easy``, ``hard``, ``qa`` or the path of a template that uses ``text``;
            generation *i* takes style *i* modulo their number.
        chunk_tokens: longer documents are split at sentence ends into parts of at most that many tokens, rephrased
            part by part and joined; null never splits.
    """

    styles: tuple[str, ...] = ("wikipedia",)
    chunk_tokens: int | None = 1024

    @property
    def name(self) -> str:
        return "rephrase"

    @property
    def version(self) -> str:
        prompts = [Prompt(style).version for style in self.styles]
        return f"{self.name} {fingerprint([prompts, self.chunk_tokens])}"

    def check(self) -> None:
        if not self.styles:
            raise UserError("recipe.styles is empty: name at least one prompt")
        check_chunk_tokens(self.chunk_tokens)
        for style in self.styles:
            Prompt(style).render(text="")

    def run(self, item: Item, count_tokens: TokenCounter) -> Steps:
        style = prompt(self.styles[item.index % len(self.styles)])
        parts = chunks(source_of(item).text, self.chunk_tokens, count_tokens)
        completions = yield [ask(style.render(text=part), "rephrase", n) for n, part in enumerate(parts)]
        return Generated(rejoin(parts, completions))


def check_chunk_tokens(chunk_tokens: int | None) -> None:
    """Refuse a limit that is no limit.

    Raises:
        UserError: it is not positive.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise UserError(f"recipe.chunk_tokens is {chunk_tokens}: choose at least 1, or null")


# The generations of a document are asked for one after the other, and all need its parts.
@lru_cache(maxsize=16)
def chunks(text: str, chunk_tokens: int | None, count_tokens: TokenCounter) -> list[str]:
    """The parts of a document that are asked for one by one; those without a word are no part."""
    parts = [text] if chunk_tokens is None else split(text, chunk_tokens, count_tokens)
    return [part for part in parts if part.strip()]


def rejoin(parts: Sequence[str], completions: Sequence[Completion]) -> str:
    """Completions of the parts as one text, with the white space that stood between the parts."""
    return "".join(_spaced(parts, completions)).strip()


def _spaced(parts: Sequence[str], completions: Sequence[Completion]) -> Iterator[str]:
    for part, completion in zip(parts, completions, strict=True):
        yield completion.text.strip()
        yield part[len(part.rstrip()) :]
