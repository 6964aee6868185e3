"""What is taken off completions, and what is rejected for which reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.synthesis.cleaning import Cleaning, answer, repetition, rouge_l
from megalit.synthesis.items import Rejected
from megalit.synthesis.requests import Completion, ask

BODY = "The river rises in the mountains and flows to the sea."


def completion(text: str, finish: str = "stop") -> Completion:
    return Completion(text, finish, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "preamble",
    [
        "Here is the rewritten text:\n\n",
        "Sure! Here's a version in the style of an encyclopedia:\n",
        "Certainly, here is the text:\n",
        "Sure:\n",
        "Below is the revised version:\n",
        "Okay. The following is a paraphrase:\n\n",
    ],
)
def test_a_preamble_is_taken_off(preamble: str) -> None:
    assert Cleaning().clean(completion(preamble + BODY)) == BODY
    assert Cleaning(preambles=False).clean(completion(preamble + BODY)) == preamble + BODY


ASKED = ask("Rewrite: the river flows.", "rephrase")
UNFINISHED = Rejected("ends within the model's thoughts")


def test_a_thought_before_the_answer_is_taken_off() -> None:
    for thought in ("<think>\nThe river …\n</think>\n\n", "\nThe river …</think>", "<think></think>"):
        assert answer(completion(thought + BODY), ASKED) == completion(BODY)
    for text in (BODY, BODY + " <think> is a mark, and </think> its end.", f"The mark <think> opens it. {BODY}"):
        assert answer(completion(text), ASKED) == completion(text)
    assert answer(completion("<think>\nThe river", "length"), ASKED) == UNFINISHED


def test_a_text_of_a_document_that_speaks_of_the_marks_may_do_so() -> None:
    asked = ask("Rewrite: a thought ends with </think>.", "rephrase")
    text = f"By </think> a thought ends. {BODY}"
    assert answer(completion(text), asked) == completion(text)
    assert answer(completion(f"<think>What of </think>{text}"), asked) == completion(text)
    assert answer(completion(f"<think>{text}"), asked) == completion(f"a thought ends. {BODY}"), "no more is known"


@pytest.mark.parametrize(
    ("thought", "end"),
    [
        ("<|channel|>analysis<|message|>We need …<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"),
        ("analysisWe need to …assistantfinal", ""),
        ("<|channel|>final<|message|>", ""),
    ],
)
def test_only_the_final_channel_is_an_answer(thought: str, end: str) -> None:
    assert answer(completion(thought + BODY + end), ASKED) == completion(BODY)
    if "We" in thought:
        assert answer(completion(thought.partition("…")[0], "length"), ASKED) == UNFINISHED
    for text in ("analysis of rivers: " + BODY, "Analysis. " + BODY, BODY + " <|channel|> is a mark."):
        assert answer(completion(text), ASKED) == completion(text)


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        "Here is where the river rises. It flows to the sea.",
        "Sure enough, the river rises.\nIt flows to the sea.",
        "The following year: the river rose.\nIt flowed.",
        "This is a list of rivers in the text that follows, and it is long enough: the first.",
        "The following is a list of cities in Norway by population:\n\nOslo, Bergen.",
        "Here are the ingredients you need for the bread:\n- flour",
        "As an AI researcher at MIT, Jane Doe wrote a book.",
        "As an artificial lake, Lake Mead is large.",
        "Sorry, Wrong Number is a 1948 film.",
        "Unfortunately, I was late for the train.",
        "I will not forget the summer of 1969.",
        "I can't find the river on any map.",
        "I can see the river. I am sorrier than most.",
    ],
)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert Cleaning().clean(completion(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot rewrite this.",
        "As an AI language model, I have no opinion.",
        "As an AI, I do not",
        "I can’t do that.",
        "Sorry, I am unable to provide this.",
        "Unfortunately, I cannot fulfill your request.",
        "I apologize, but I will not do this.",
    ],
)
def test_a_refusal_is_rejected(text: str) -> None:
    assert Cleaning().clean(completion(text)) == Rejected("refusal")
    assert Cleaning(refusals=False).clean(completion(text)) == text


def test_a_completion_that_was_cut() -> None:
    cut = completion("One whole sentence. And half of", "length")
    assert Cleaning(truncated="keep").clean(cut) == cut.text
    assert Cleaning(truncated="trim").clean(cut) == "One whole sentence."
    assert Cleaning(truncated="reject").clean(cut) == Rejected("cut at the length limit")
    assert Cleaning(truncated="trim").clean(completion("Half of", "length")) == Rejected("cut at the length limit")
    assert Cleaning(truncated="reject").clean(completion(BODY)) == BODY


def test_half_a_character_at_a_cut_is_no_text() -> None:
    cut = completion("Der Fluss flie\ufffd", "length")
    assert Cleaning(truncated="keep").clean(cut) == "Der Fluss flie"
    assert Cleaning(truncated="keep").clean(completion(cut.text)) == cut.text, "the model's own"


def test_scripts_without_spaces_are_measured_by_letters() -> None:
    cleaning = Cleaning()
    source = "这条河发源于北方的高山之间，然后穿过许多古老的村庄和宽阔的平原，最后在港口附近缓缓流入蔚蓝色的大海。"
    own = "港口边的蓝色海水，有一部分来自遥远的北方：一条河从高山上流下，沿途经过村庄与平原，才抵达终点。"
    assert cleaning.problem(own, source) is None
    assert cleaning.problem("一条河。", source) == "too short"
    assert cleaning.problem(source.replace("古老", "美丽"), source) == "copy of the document"
    assert cleaning.problem("河水一直流啊流，从不停下来。" * 20, source) == "repetition"


def literal_rouge_l(one: list[str], other: list[str]) -> float:
    """By the textbook's table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    precision, recall = common / len(one), common / len(other)
    return 2 * precision * recall / (precision + recall) if common else 0.0


@given(*[st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)] * 2)
def test_rouge_l_is_that_of_the_textbook(one: list[str], other: list[str]) -> None:
    assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(literal_rouge_l(one, other))


def test_generations_are_rejected_for_what_is_wrong_with_them() -> None:
    cleaning = Cleaning(min_words=3, max_words=400)
    source = " ".join(f"word{n}" for n in range(100))
    assert cleaning.problem("A text of its own, with other words.", source) is None
    assert cleaning.problem(" \n", source) == "empty"
    assert cleaning.problem("two words", source) == "too short"
    assert cleaning.problem("long " * 401, source) == "too long"
    assert cleaning.problem(source.replace("word7 ", "other "), source) == "copy of the document"
    assert cleaning.problem(source, None) is None
    assert Cleaning(copy_threshold=None).problem(source, source) is None
    loop = "and so it went on and on without an end to it, " * 30
    assert cleaning.problem(loop, source) == "repetition"
    assert Cleaning(repetition_threshold=None).problem(loop, source) is None
    assert repetition(["a", "b", "c", "d"] * 2) == 0.0


def test_the_language_is_looked_at_where_it_is_asked_for() -> None:
    german = "Der Fluss entspringt in den Bergen und fließt durch viele Dörfer bis in das Meer."
    assert Cleaning().problem(german, None) is None
    cleaning = Cleaning(language="en")
    cleaning.check()
    assert cleaning.problem(german, None) == "other language"
    assert cleaning.problem(BODY, None) is None
    with pytest.raises(UserError, match="cleaning.language 'xx' is not known"):
        Cleaning(language="xx").check()


@pytest.mark.parametrize(
    "settings", [{"copy_threshold": 1.5}, {"repetition_threshold": -0.1}, {"min_words": 9, "max_words": 3}]
)
def test_settings_that_cannot_work(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="cleaning"):
        Cleaning(**settings).check()  # type: ignore[arg-type]
