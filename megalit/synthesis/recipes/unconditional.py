"""Unconditional samples: what a trained model writes of its own accord, for hard-label self-distillation.

"Pre-training under infinite compute" (arXiv 2509.14786) trains a student from scratch on its teacher's samples mixed
with the real documents. Its prompt and temperature are not given: BOS alone, and the settings of sampling.
"""

from dataclasses import dataclass
from typing import ClassVar

from megalit.synthesis.items import Generated, Item, Kind, Recipe, Steps, TokenCounter
from megalit.synthesis.requests import Request


@dataclass(frozen=True)
class Unconditional(Recipe):
    """Samples without a source document: the model continues its BOS token."""

    kind: ClassVar[Kind] = "samples"

    @property
    def name(self) -> str:
        return "unconditional"

    @property
    def version(self) -> str:
        return "unconditional 1"

    def run(self, item: Item, count_tokens: TokenCounter) -> Steps:
        (completion,) = yield [Request((), "sample")]
        return Generated(completion.text)
