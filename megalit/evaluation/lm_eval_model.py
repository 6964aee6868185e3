"""A model, or an ensemble of models, as lm-eval sees one (needs the extra ``eval``).

It answers as lm-eval's own Hugging Face model does on the exported weights: the same tokens, the same truncation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.evaluation.losses import (
    Average,
    averaged,
    check_finite,
    check_vocabularies,
    device_of,
    inference,
    member_logits,
)
from megalit.modeling.decoder import Decoder
from megalit.modeling.head import IGNORED

# What lm-eval hands over: the texts (for its cache), the context's tokens, the continuation's.
Request = tuple[Any, list[int], list[int]]


class MegalitLM(TemplateLM):
    """One model, or several with one tokenizer that are averaged.

    Args:
        models: on the device on which they are to run.
        tokenizer: of all of them.
        context_length: tokens that the models can see; of longer requests the left end is cut off.
        batch: requests in a pass.
        precision: Lightning's name; mixed ones run under autocast.
        average: what is averaged over several models.
        bos: put BOS before each context (default: as the tokenizer does by itself, which is lm-eval's own default).

    Raises:
        UserError: members with vocabularies of different sizes, or a tokenizer that does not fit them.
    """

    def __init__(
        self,
        models: Sequence[Decoder],
        tokenizer: Tokenizer,
        context_length: int,
        batch: int = 16,
        precision: str = "32-true",
        average: Average = "probabilities",
        bos: bool | None = None,
    ) -> None:
        super().__init__()
        check_vocabularies(models)
        if tokenizer.vocabulary_size > int(models[0].vocabulary_size or 0):
            raise UserError(
                f"tokenizer {tokenizer.name} has {tokenizer.vocabulary_size} tokens and the model "
                f"{models[0].vocabulary_size}: name the tokenizer that the model was trained with"
            )
        self.models = list(models)
        self.own_tokenizer = tokenizer
        self.max_length = context_length
        self.batch = batch
        self.precision = precision
        self.average: Average = average
        self.bos = tokenizer.adds_bos if bos is None else bos

    @property
    def eot_token_id(self) -> int:
        return self.own_tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation that has no context."""
        return self.own_tokenizer.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokens: list[int] = self.own_tokenizer.encode_batch([string])[0].tolist()
        with_bos = self.bos if add_special_tokens is None else add_special_tokens
        return [self.own_tokenizer.bos, *tokens] if with_bos else tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would write it."""
        # The longest first: neighbours are padded little, and what does not fit into memory says so at once.
        order = sorted(range(len(requests)), key=lambda number: -len(requests[number][1]) - len(requests[number][2]))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for first in range(0, len(order), self.batch):
            numbers = order[first : first + self.batch]
            for number, answer in zip(numbers, self._answers([requests[n] for n in numbers]), strict=True):
                answers[number] = answer
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        return answers

    def _answers(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        batch, lengths = self._batch(requests)
        likelihoods: list[Tensor] = []
        greedy: list[Tensor] = []
        with inference(self.models, self.precision):
            for logits, targets in member_logits(self.models, batch):
                mixed = averaged(logits, self.average)
                likelihoods.append(mixed.gather(1, targets[:, None])[:, 0])
                greedy.append(mixed.argmax(1) == targets)
        found = torch.cat(likelihoods)
        check_finite(found, range(len(requests)))
        parts = zip(found.cpu().split(lengths), torch.cat(greedy).cpu().split(lengths), strict=True)
        return [(float(likelihood.sum()), bool(same.all())) for likelihood, same in parts]

    def _batch(self, requests: Sequence[Request]) -> tuple[dict[str, Tensor], list[int]]:
        """Tokens and targets; targets are the continuations alone. And how long each continuation is."""
        lengths = [len(continuation) for _, _, continuation in requests]
        if max(lengths) > self.max_length:
            raise UserError(
                f"a continuation has {max(lengths)} tokens and the model sees {self.max_length}: leave this task out, "
                "or measure a model with a longer context"
            )
        rows = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        width = max(map(len, rows)) - 1
        # Padding stands to the right, where causal attention does not look.
        tokens = torch.full((len(rows), width), self.eot_token_id)
        targets = torch.full((len(rows), width), IGNORED)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            tokens[place, : len(row) - 1] = torch.tensor(row[:-1])
            targets[place, len(row) - 1 - length : len(row) - 1] = torch.tensor(row[-length:])
        device = device_of(self.models[0])
        return {"tokens": tokens.to(device), "targets": targets.to(device)}, lengths

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token once, in windows that follow each other."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            own = [(None, *make_disjoint_window(part)) for part in parts]
            windows.extend(own)
            counts.append(len(own))
        answers = iter(self._loglikelihood_tokens(windows))
        return [sum(next(answers)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Refused: it is for tasks that compare likelihoods.

        Raises:
            UserError: always.
        """
        raise UserError(
            "the task generates text, which is not measured here: export the model with `megalit export` and give it "
            "to `lm_eval --model hf`"
        )
