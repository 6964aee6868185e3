"""Write, critique, revise: a rephrase that the model reviews and mends itself.

The steps are those of Constitutional AI (arXiv 2212.08073, section 3.1), with faithfulness to the document in the
place of a constitution. The wording of the prompts is ours.
"""

from dataclasses import dataclass

from megalit.errors import UserError
from megalit.files import fingerprint
from megalit.synthesis.items import Generated, Item, Recipe, Steps, TokenCounter, source_of
from megalit.synthesis.prompts import Prompt, prompt
from megalit.synthesis.recipes.rephrase import check_chunk_tokens, chunks, rejoin
from megalit.synthesis.requests import ask


@dataclass(frozen=True)
class CritiqueAndRevise(Recipe):
    """Say the document anew, then criticise and revise what came out.

    Attributes:
        style: prompt of the first draft; it uses ``text``.
        critique: prompt of the review; it uses ``text`` and ``draft``.
        revise: prompt of the new version; it uses ``text``, ``draft`` and ``critique``.
        rounds: how often the draft is reviewed and revised.
        chunk_tokens: longer documents are split at sentence ends into parts of at most that many tokens.
    """

    style: str = "wikipedia"
    critique: str = "critique"
    revise: str = "revise"
    rounds: int = 1
    chunk_tokens: int | None = 1024

    @property
    def name(self) -> str:
        return "critique_and_revise"

    @property
    def version(self) -> str:
        prompts = [Prompt(name).version for name in (self.style, self.critique, self.revise)]
        return f"{self.name} {fingerprint([prompts, self.rounds, self.chunk_tokens])}"

    def check(self) -> None:
        if self.rounds < 1:
            raise UserError(f"recipe.rounds is {self.rounds}: choose at least 1, or use Rephrase")
        check_chunk_tokens(self.chunk_tokens)
        Prompt(self.style).render(text="")
        Prompt(self.critique).render(text="", draft="")
        Prompt(self.revise).render(text="", draft="", critique="")

    def run(self, item: Item, count_tokens: TokenCounter) -> Steps:
        parts = chunks(source_of(item).text, self.chunk_tokens, count_tokens)
        write, review, revise = prompt(self.style), prompt(self.critique), prompt(self.revise)
        drafts = yield [ask(write.render(text=part), "write", n) for n, part in enumerate(parts)]
        for number in range(self.rounds):
            pairs = list(zip(parts, drafts, strict=True))
            critiques = yield [
                ask(review.render(text=part, draft=draft.text), f"critique {number}", n, is_text=False)
                for n, (part, draft) in enumerate(pairs)
            ]
            drafts = yield [
                ask(revise.render(text=part, draft=draft.text, critique=critique.text), f"revise {number}", n)
                for n, ((part, draft), critique) in enumerate(zip(pairs, critiques, strict=True))
            ]
        return Generated(rejoin(parts, drafts))
