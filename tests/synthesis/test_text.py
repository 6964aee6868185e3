"""Splitting at sentence ends loses nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalit.synthesis.text import ngrams, sentences, split, trim_to_sentence, words

texts = st.text(st.sampled_from('ab .!?\n"é。')) | st.text(st.characters(exclude_categories=["Cs"]))


def count_words(text: str) -> int:
    return len(text.split())


@given(texts, st.integers(1, 6))
def test_parts_joined_are_the_text_and_none_is_too_long(text: str, limit: int) -> None:
    assert "".join(sentences(text)) == text
    for count in (len, count_words):
        parts = split(text, limit, count)
        assert "".join(parts) == text
        assert all(count(part) <= limit for part in parts)


def test_parts_end_where_sentences_end() -> None:
    text = "One two three. Four five! Six seven eight nine? Ten."
    assert split(text, 5, count_words) == ["One two three. Four five! ", "Six seven eight nine? Ten."]
    assert split(text, 100, count_words) == [text]
    # A sentence that is too long by itself is cut between words.
    assert split("one two three four five six", 4, count_words) == ["one two ", "three four five six"]


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        ("One. Two. Thr", "One. Two."),
        ('He said "no." And', 'He said "no."'),
        ("Version 1.5 is", ""),
        ("一。二。三", "一。二。"),
        ("All of it.", "All of it."),
        ("", ""),
    ],
)
def test_a_cut_text_ends_with_its_last_whole_sentence(text: str, trimmed: str) -> None:
    assert trim_to_sentence(text) == trimmed


def test_scripts_without_spaces_have_sentences_too() -> None:
    text = "今天天气很好。我们去公园散步。大家都很高兴！"
    assert sentences(text) == ["今天天气很好。", "我们去公园散步。", "大家都很高兴！"]
    assert split(text, 16, len) == ["今天天气很好。我们去公园散步。", "大家都很高兴！"]


def test_a_run_of_marks_takes_no_time() -> None:
    assert "".join(sentences("." * 20_000)) == "." * 20_000


@given(st.text(st.characters(max_codepoint=0x0DFF)))
def test_words_of_other_scripts_are_runs_of_letters(text: str) -> None:
    assert words(text) == re.findall(r"\w+", text.lower())


def test_words_and_runs_of_them() -> None:
    assert words("The cat, the HAT!") == ["the", "cat", "the", "hat"]
    assert words("Tōkyō は、東京・都 GPU_1です") == ["tōkyō", "は", "東", "京", "都", "gpu_1", "で", "す"]
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams(["a"], 2)) == []
