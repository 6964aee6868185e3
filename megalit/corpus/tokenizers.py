"""Tokenizers: one trained here, a local folder, or a hub name, all behind one small class.

Stores hold documents without BOS and EOS, and text never turns into special tokens: a document
that spells out ``<|eos|>`` is encoded as those characters. So a tokenizer whose own template
adds BOS cannot lead to two.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError, reason
from megalit.files import fingerprint

BOS, EOS = "<|bos|>", "<|eos|>"
THOUGHT_START, THOUGHT_END = "<think>", "</think>"
SPECIAL_TOKENS = (BOS, EOS, THOUGHT_START, THOUGHT_END)

Tokens = npt.NDArray[np.int32]


def train_bpe(texts: Iterable[str], vocabulary_size: int, folder: Path) -> None:
    """Train a byte-level BPE on ``texts`` and save it to ``folder`` in the Hugging Face format.

    Every byte has a token, so any text can be encoded and decoded without loss.

    Raises:
        UserError: the vocabulary has no room for the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + len(SPECIAL_TOKENS)
    if vocabulary_size < smallest:
        raise UserError(f"a tokenizer with a vocabulary of {vocabulary_size} was asked for: at least {smallest}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


class Tokenizer:
    """A fast tokenizer with what the stores need to know of it.

    Attributes:
        name: the path or hub name it came from.
        bos: id of the token before each document (the EOS token where there is no BOS).
        eos: id of the token after each document.
        vocabulary_size: one more than the largest id.

    Raises:
        UserError: nothing at that path or name, no fast tokenizer, or one without EOS.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        self.name = name
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
            raise UserError(f"tokenizer {name} does not exist: check the path")
        try:
            loaded = AutoTokenizer.from_pretrained(str(Path(name).expanduser()) if "~" in name else name)
        except Exception as error:
            raise UserError(
                f"tokenizer {name} cannot be loaded ({reason(error)}): give a folder with tokenizer.json, or a hub name"
            ) from error
        backend: Any = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"tokenizer {name} has no fast version: convert it to tokenizer.json")
        if loaded.eos_token_id is None:
            raise UserError(f"tokenizer {name} has no EOS token: set eos_token in its tokenizer_config.json")
        self._loaded: Any = loaded
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        # Special tokens that are spelled out in a text are plain text.
        self._backend.encode_special_tokens = True
        self.eos = int(loaded.eos_token_id)
        self.bos = int(loaded.bos_token_id) if loaded.bos_token_id is not None else self.eos
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(vocabulary.values()) + 1

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes token ids."""
        return fingerprint([self._backend.to_str(), self.bos, self.eos])

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer by itself puts BOS before a text; stores and orderings never leave it to it."""
        return self._backend.encode("", add_special_tokens=True).ids[:1] == [self.bos]

    def save(self, folder: Path) -> None:
        """Write a copy in the Hugging Face format, so that the data set stands on its own."""
        self._loaded.save_pretrained(folder)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode texts to ids, without BOS and EOS, on all cores."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def token_offsets(self, text: str, characters: Sequence[int]) -> list[int]:
        """For each character offset, the number of ``text``'s tokens that start before it.

        A token starts at its first character that is no white space: most begin with the space before their word, and
        an offset at the word lies before them. An offset inside a token moves behind that token, so that no token is
        cut.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        starts = np.array([_start(text, begin, end) for begin, end in encoding.offsets], dtype=np.int64)
        return [int(position) for position in np.searchsorted(starts, characters, side="left")]

    def encode_marker(self, marker: str) -> Tokens:
        """Encode a marker such as ``<think>``: one special token where the vocabulary has it."""
        # A copy, because the setting is the tokenizer's and another thread may be encoding text.
        backend = type(self._backend).from_str(self._backend.to_str())
        return np.array(backend.encode(marker, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, tokens: Sequence[int] | Tokens) -> str:
        """The text of the tokens, special ones included."""
        return str(self._backend.decode([int(token) for token in tokens], skip_special_tokens=False))


def _start(text: str, begin: int, end: int) -> int:
    """Where a token's first character that is no white space stands, or the token itself."""
    piece = text[begin:end]
    return begin + len(piece) - len(piece.lstrip()) if not piece.isspace() else begin
