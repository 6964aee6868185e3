"""Reasoning models behind a server: their thoughts are told from their answers, or the run ends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import Server, complete, says
from transformers import AutoTokenizer

from megalit.errors import UserError
from megalit.synthesis.cleaning import answer
from megalit.synthesis.engines import OpenAI
from megalit.synthesis.items import Rejected
from megalit.synthesis.requests import ask

pytestmark = pytest.mark.usefixtures("waits")


def test_a_thought_that_the_template_opens_belongs_to_its_completion(server: Server) -> None:
    server.answers = says("Okay, so I need to rewrite this. Let me draft it.", finish="length")
    (completion,) = complete(server, opens_thought=True)
    assert isinstance(answer(completion, ask("say it", "step")), Rejected), "a thought that does not end is no text"
    server.answers = says("Okay, so I …</think>\n\nThe river flows.")
    (completion,) = complete(server, opens_thought=True)
    asked = ask("say what </think> is", "step")
    assert answer(completion, asked) == replace(completion, text="The river flows."), "whatever the document speaks of"
    # What a server has parsed is the answer alone.
    for name in ("reasoning_content", "reasoning"):
        server.answers = says("The river flows.", **{name: "Okay, so I …"})
        assert complete(server, opens_thought=True)[0].text == "The river flows."
    settings = OpenAI("model", opens_thought=True).settings
    assert settings["opens_thought"], "completions of before are not those of now"
    assert OpenAI("model").settings == OpenAI("model", opens_thought=False).settings
    with pytest.raises(UserError, match="opens_thought is about chat templates"):
        OpenAI("model", chat=False, opens_thought=True)


def test_thoughts_that_nobody_spoke_of_end_the_run_soon(server: Server) -> None:
    thought = "Okay, so I …</think>The river flows."
    server.answers = says(thought)
    with pytest.raises(UserError, match=r"model begin within a thought.*set engine.opens_thought true, or false"):
        complete(server, count=3, in_flight=1)
    assert len(server.bodies) == 3
    # Not where the user knows, where documents speak of the mark, or of a base model.
    assert len(complete(server, count=9, opens_thought=False)) == 9
    assert len(complete(server, ask("say what </think> is", "step"), count=9)) == 9
    assert len(complete(server, count=9, chat=False)) == 9


def test_a_stray_mark_ends_no_run(server: Server) -> None:
    stray, plain = says("A lone </think> slips in."), says("The river flows.")
    server.answers = [*stray * 2, *plain * 20, *stray * 20, *plain]
    assert len(complete(server, count=43, in_flight=1)) == 43


def test_the_tokenizer_s_template_tells_whether_it_opens_a_thought(
    server: Server, data_set: Any, tmp_path: Path
) -> None:
    loaded = AutoTokenizer.from_pretrained(data_set.stores.tokenizer)
    loaded.chat_template = (
        "{% for turn in messages %}<user>{{ turn.content }}{% endfor %}<assistant>"
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    )
    loaded.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"template of engine.tokenizer .* opens a thought: set engine.opens_thought"):
        OpenAI("model", tokenizer=str(tmp_path)).open()
    assert not server.bodies
    at_once = {"chat_template_kwargs": {"enable_thinking": False}}
    for settings in ({"opens_thought": False}, {"opens_thought": True}, {"chat": False}, {"options": at_once}):
        engine = OpenAI("model", tokenizer=str(tmp_path), **settings)  # type: ignore[arg-type]
        engine.open()
        assert engine.count_tokens("abc def")
    loaded.chat_template = "{{ raise_exception('only of two turns') }}"
    loaded.save_pretrained(tmp_path)
    OpenAI("model", tokenizer=str(tmp_path)).open()
