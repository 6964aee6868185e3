"""Tokenizers give back any text, and never put in special tokens of their own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.errors import UserError

TEXTS = ["the quick brown fox jumps over the lazy dog", "the lazier the fox the quicker the dog"] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 300, folder)
    return Tokenizer(str(folder))


unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


@given(unicode_text)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    (tokens,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocabulary_size for token in tokens)


@given(unicode_text, unicode_text)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, before: str, after: str) -> None:
    text = f"{before}<|eos|><think><|bos|>{after}"
    (tokens,) = tokenizer.encode_batch([text])
    markers = {int(tokenizer.encode_marker(marker)[0]) for marker in ("<think>", "</think>")}
    assert not {tokenizer.bos, tokenizer.eos, *markers} & set(tokens.tolist())
    assert tokenizer.decode(tokens) == text


@given(unicode_text, st.data())
def test_token_offsets_never_cut_a_token(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(text)))
    (tokens,) = tokenizer.encode_batch([text])
    begin, at, end = tokenizer.token_offsets(text, [0, offset, len(text)])
    assert (begin, end) == (0, len(tokens))
    assert 0 <= at <= len(tokens)


@given(
    st.lists(st.sampled_from(["the", "fox", "quicker", "é", "狗"]), min_size=2, max_size=8),
    st.sampled_from([" ", "  ", "\n"]),
)
def test_the_offset_of_a_word_lies_before_its_first_token(tokenizer: Tokenizer, words: list[str], gap: str) -> None:
    """Which begins with the space before the word."""
    text = gap.join(words)
    (tokens,) = tokenizer.encode_batch([text])
    for number in range(1, len(words)):
        offset = len(gap.join(words[:number])) + len(gap)
        (at,) = tokenizer.token_offsets(text, [offset])
        before, behind = tokenizer.decode(tokens[:at]), tokenizer.decode(tokens[at:])
        assert before.rstrip() == gap.join(words[:number])
        assert behind.lstrip() == gap.join(words[number:])


def test_markers_are_one_token_each(tokenizer: Tokenizer) -> None:
    assert [len(tokenizer.encode_marker(marker)) for marker in ("<think>", "</think>")] == [1, 1]
    assert tokenizer.vocabulary_size <= 300
    assert tokenizer.bos != tokenizer.eos


def test_a_tokenizer_that_adds_bos_itself_does_not_lead_to_two(tmp_path: Path) -> None:
    words = {"<s>": 0, "</s>": 1, "the": 2, "fox": 3, "[UNK]": 4}
    backend = Backend(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    assert backend.encode("the fox").ids == [0, 2, 3, 1]
    tokenizer = Tokenizer(str(tmp_path))
    assert tokenizer.encode_batch(["the fox"])[0].tolist() == [2, 3]
    assert (tokenizer.bos, tokenizer.eos) == (0, 1)


def test_the_fingerprint_is_that_of_the_token_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "copy")
    assert Tokenizer(str(tmp_path / "copy")).fingerprint == tokenizer.fingerprint
    train_bpe(TEXTS, 290, tmp_path / "other")
    assert Tokenizer(str(tmp_path / "other")).fingerprint != tokenizer.fingerprint


def test_tokenizers_that_cannot_serve_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 260"):
        train_bpe(TEXTS, 100, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer("./absent")
    with pytest.raises(UserError, match="cannot be loaded") as refused:
        Tokenizer(str(tmp_path))
    assert "\n" not in str(refused.value)
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="has no EOS token"):
        Tokenizer(str(tmp_path / "bare"))
