"""Does a model use siblings? Loss of held-out real documents behind their own translations, or behind others'.

    python experiments/translations/siblings.py --data runs/translations/data --runs '[runs/translations/small/…]'
                                                [--results experiments/translations/results/small]

A stitched stream can teach a model to look up in the window what another version of the document has said. If it
does, a real document behind its own translations is easier than behind translations of other documents.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import CLI
from results import Results
from torch import Tensor

from megalit.cli.models import open_model
from megalit.corpus.tables import VALIDATION, Corpus
from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.evaluation.losses import token_losses
from megalit.files import fingerprint
from megalit.modeling.head import IGNORED


class RealBehind:
    """A suite of real documents, each at the end of a window behind some pieces; only the real one is predicted.

    Args:
        documents: tokens of the real documents, with BOS and EOS.
        pieces: for each, the tokens in front of it, of which the nearest are kept.
        length: tokens in a window.
    """

    def __init__(self, documents: Sequence[list[int]], pieces: Sequence[list[int]], length: int) -> None:
        self.context_length = length
        self._own = documents
        self._whole = [(piece + own)[-length - 1 :] for piece, own in zip(pieces, documents, strict=True)]
        self.windows = len(documents)
        # The BOS is not predicted, whatever is in front of it, so that all suites have the same targets.
        self.window_targets = np.array([min(len(own) - 1, length) for own in documents], dtype=np.int64)
        self.targets = int(self.window_targets.sum())
        self.text_bytes = 0

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._whole)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        tokens = torch.zeros(len(numbers), self.context_length, dtype=torch.int32)
        targets = torch.full_like(tokens, IGNORED)
        for row, number in enumerate(numbers):
            whole = torch.tensor(self._whole[number], dtype=torch.int32)
            first = len(whole) - 1 - int(self.window_targets[number])
            tokens[row, : len(whole) - 1] = whole[:-1]
            targets[row, first : len(whole) - 1] = whole[first + 1 :]
        return {"tokens": tokens, "targets": targets}


def copied(own: Sequence[int], pieces: Sequence[Sequence[int]], order: int = 2) -> int:
    """How many tokens of a document are what follows its last ``order`` tokens most often in the pieces.

    It is what a model would get right that copies from the window and knows nothing else.
    """
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for piece in pieces:
        for at in range(order, len(piece)):
            followers[tuple(piece[at - order : at])][piece[at]] += 1
    known = [(own[at], followers.get(tuple(own[at - order : at]))) for at in range(order, len(own))]
    return sum(token == counts.most_common(1)[0][0] for token, counts in known if counts)


def first(pieces: Sequence[list[int]], count: int) -> list[int]:
    """The first pieces as one."""
    return [token for piece in pieces[:count] for token in piece]


def main(data: str, runs: Sequence[str], most: int = 3, results: str | None = None) -> None:
    """Measure trained models.

    Args:
        data: folder of the corpus and the stores.
        runs: folders of runs.
        most: translations in front of the real document.
        results: folder of the runs' records; what is measured is kept there and in the report.
    """
    kept = Results(Path(results), None) if results is not None else None
    for run in runs:
        if kept is not None and not kept.is_of(Path(run)):
            raise UserError(f"{results} has no record of the weights in {run}: name the folder that has")
    corpus = Corpus(Path(data) / "corpus")
    tokenizer = Tokenizer(str(Path(data) / "stores" / "tokenizer"))

    def encoded(texts: Sequence[str]) -> list[list[int]]:
        return [[tokenizer.bos, *map(int, ids), tokenizer.eos] for ids in tokenizer.encode_batch(texts)]

    texts = {row["id"]: row["text"] for row in corpus.rows("documents", VALIDATION, ["id", "text"])}
    versions: dict[str, list[str]] = {name: [] for name in texts}
    for row in corpus.rows("generations", VALIDATION, ["document_id", "text"]):
        versions[row["document_id"]].append(row["text"])
    texts = {name: text for name, text in texts.items() if len(versions[name]) >= most}
    if len(texts) < 2:
        raise UserError(f"{data} has {len(texts)} held-out documents with {most} translations: lower --most")
    documents = encoded(list(texts.values()))
    rng = np.random.default_rng(0)
    drawn = [rng.choice(len(versions[name]), most, replace=False) for name in texts]
    siblings = [encoded([versions[name][at] for at in places]) for name, places in zip(texts, drawn, strict=True)]
    # Every document gets those of the one half the list away: of another chapter, and each is used once.
    half = len(siblings) // 2
    strangers = siblings[half:] + siblings[:half]
    right = sum(copied(own, pieces) for own, pieces in zip(documents, siblings, strict=True))
    share = right / sum(len(own) - 1 for own in documents)
    print(f"copying from {most} siblings would get {share:.1%} of the tokens right")
    for run in runs:
        model = open_model(Path(run))
        losses = {
            name: [
                float(token_losses(model.model, suite, precision=model.precision).mean(dtype="float64"))
                for count in range(most + 1)
                for suite in [RealBehind(documents, [first(own, count) for own in others], model.context_length)]
            ]
            for name, others in (("siblings", siblings), ("strangers", strangers))
        }
        print(json.dumps({run: losses}), flush=True)
        if kept is not None:
            kept.add_behind_siblings(Path(run).name, losses)


if __name__ == "__main__":
    try:
        CLI(main, as_positional=False)
    except UserError as error:
        sys.exit(f"error: {error}")
