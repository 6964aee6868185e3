"""Token noise: the classical augmentation, random deletion and substitution of words.

It is the offline baseline that "Rephrase the Web" (WRAP, arXiv 2401.16380) compares rephrases
with. It adds no knowledge: real gains need generations by an instruct model. Its rates are not
given there, so they are settings here.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megalit.corpus import tables
from megalit.corpus.tables import TRAIN, Corpus, TableWriter
from megalit.errors import UserError
from megalit.files import fingerprint, new_folder, write_json
from megalit.synthesis.items import Generated, Item, Recipe, Steps, TokenCounter, source_of

_PIECES = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True)
class TokenNoise(Recipe):
    """Noise in the place of a model: the recipe asks for no completion.

    Attributes:
        count: generations per training document that a preparation makes; `megalit generate` has `generations`.
        deletion: chance that a word is dropped.
        substitution: chance that a word that stays is replaced by another word of the document.
        seed: the same seed gives the same generations.
    """

    count: int = 4
    deletion: float = 0.1
    substitution: float = 0.1
    seed: int = 0

    @property
    def name(self) -> str:
        return "token_noise"

    @property
    def version(self) -> str:
        return f"{self.name} {fingerprint([self.deletion, self.substitution, self.seed])}"

    def run(self, item: Item, count_tokens: TokenCounter) -> Steps:
        source = source_of(item)
        return Generated(self.generate(source.id, source.text, item.index))
        yield  # a recipe is a generator, also one that asks nothing

    def generate(self, identifier: str, text: str, index: int) -> str:
        """Generation number ``index`` of a document: a pure function of the settings and arguments."""
        key = f"{self.seed}:{index}:{identifier}".encode()
        random = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
        words = _PIECES.findall(text)
        replaced = random.random(len(words)) < self.substitution
        others = random.integers(len(words), size=len(words))
        kept = random.random(len(words)) >= self.deletion
        # A word brings the white space behind it along; substitution keeps that of the place.
        noisy = [
            _swap(word, words[other]) if swap else word
            for word, swap, other, keep in zip(words, replaced, others, kept, strict=True)
            if keep
        ]
        return "".join(noisy) or words[0]

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: a rate outside [0, 1), or fewer than one generation.
        """
        for name in ("deletion", "substitution"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"token_noise {name} is {getattr(self, name)}: choose a value in [0, 1)")
        if self.count < 1:
            raise UserError(f"token_noise count is {self.count}: ask for at least one generation")


def _swap(word: str, other: str) -> str:
    bare = word.rstrip()
    return other.rstrip() + word[len(bare) :]


def generate_token_noise(
    recipe: TokenNoise, corpus: Corpus, output: Path, progress: Callable[[int], None] = lambda generations: None
) -> int:
    """Write ``recipe.count`` generations of every training document to the folder ``output``.

    Returns their number; ``progress`` is told it on the way.

    The folder holds ``generations.parquet`` in the corpus' schema and a manifest, and appears as a
    whole. Call it under :func:`megalit.files.lock`.
    """
    recipe.check()
    with new_folder(output) as folder:
        with TableWriter(folder / "generations.parquet", tables.GENERATIONS) as writer:
            for row in corpus.rows("documents", TRAIN, ["id", "content_hash", "text"]):
                for index in range(recipe.count):
                    writer.write(
                        {
                            "document_id": row["id"],
                            "content_hash": row["content_hash"],
                            "generation": index,
                            "recipe": "token_noise",
                            "split": TRAIN,
                            "text": recipe.generate(row["id"], row["text"], index),
                        }
                    )
                progress(writer.rows)
        manifest = {
            "format": tables.FORMAT,
            "kind": "generations",
            "recipe": "token_noise",
            "settings": asdict(recipe),
            "rows": writer.rows,
        }
        write_json(folder / "manifest.json", manifest)
    return writer.rows
