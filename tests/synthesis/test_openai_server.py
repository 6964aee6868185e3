"""The OpenAI engine against a real HTTP server that behaves badly in every way that servers do."""

import asyncio
import json
import time
from typing import Any

import pytest
from serving import Answer, Handler, Server, body, complete, frozen, good, hangs_up, status

from megalit.errors import UserError
from megalit.synthesis.engines import EngineError, OpenAI, TooLongError
from megalit.synthesis.requests import Completion, Request, Sampling, ask

pytestmark = pytest.mark.usefixtures("waits")


def test_a_request_says_what_is_wanted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    sampling = Sampling(0.7, 0.9, top_k=5, repetition_penalty=1.1, max_tokens=9, stop=("END",))
    (completion,) = complete(server, sampling=sampling, key_variable="MY_KEY", options={"min_p": 0.1})
    assert completion == Completion("answer 0", "length", 11, 7)
    (sent,) = server.bodies
    assert sent["path"] == "/v1/chat/completions"
    assert sent["messages"] == [{"role": "user", "content": "say it"}]
    wanted = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 9, "seed": 0, "stop": ["END"], "model": "model"}
    beside: dict[str, Any] = {"top_k": 5, "repetition_penalty": 1.1, "min_p": 0.1}
    assert {key: sent[key] for key in (wanted | beside)} == wanted | beside
    assert sent["key"] == "Bearer secret"
    # Neutral settings are said, too: a server would take the model's own otherwise.
    complete(server)
    neutral = {"top_k": -1, "repetition_penalty": 1.0, "min_p": 0.0}
    assert {key: server.bodies[1][key] for key in neutral} == neutral
    complete(server, strict=True)
    assert not neutral.keys() & server.bodies[2].keys()


def test_a_base_model_gets_plain_text_or_its_bos(server: Server, data_set: Any) -> None:
    complete(server, chat=False)
    complete(server, Request((), "sample"), chat=False, tokenizer=str(data_set.stores.tokenizer))
    assert [sent["path"] for sent in server.bodies] == ["/v1/completions"] * 2
    # vLLM refuses an empty prompt, and not every tokenizer puts BOS before one.
    assert [sent["prompt"] for sent in server.bodies] == ["say it\n\n", [data_set.tokenizer.bos]]
    with pytest.raises(UserError, match=r"name its tokenizer in engine\.tokenizer"):
        complete(server, Request((), "sample"), chat=False)
    with pytest.raises(UserError, match="set engine.chat false"):
        complete(server, Request((), "sample"))


@pytest.mark.parametrize(
    "bad",
    [status(429), status(500), status(503), hangs_up, frozen]
    + [body(data) for data in (b"garbage", b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": 7}]}', b"")],
)
def test_what_passes_is_waited_for(server: Server, waits: list[float], bad: Answer) -> None:
    server.answers = [bad, bad, good]
    assert complete(server, timeout=0.5)[0].text == "answer 2"
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


@pytest.mark.parametrize("bad", [status(500), status(429), hangs_up, frozen, body(b"garbage")])
def test_what_does_not_pass_ends_in_one_line(server: Server, waits: list[float], bad: Answer) -> None:
    server.answers = [bad]
    with pytest.raises(EngineError, match="does not answer after 4 tries .*: what is finished is kept"):
        complete(server, timeout=0.3, retries=3)
    assert len(server.bodies) == 4
    assert len(waits) == 3


def test_a_completion_that_was_broken_off_is_asked_for_again(server: Server, waits: list[float]) -> None:
    def broken_off(handler: Handler, number: int) -> None:
        choice = {"index": 0, "finish_reason": "abort", "message": {"role": "assistant", "content": "half of"}}
        handler.send(200, json.dumps({"id": "x", "choices": [choice]}).encode())

    def uncounted(handler: Handler, number: int) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "whole answer"}}
        handler.send(200, json.dumps({"id": "x", "choices": [choice]}).encode())

    server.answers = [broken_off, uncounted]
    (completion,) = complete(server)
    assert completion == Completion("whole answer", "stop", 0, 3)
    assert len(waits) == 1


def test_a_server_that_is_not_there(waits: list[float]) -> None:
    server = Server()
    server.server_close()
    with pytest.raises(EngineError, match="does not answer after 3 tries"):
        complete(server, retries=2)


def test_a_server_says_how_long_to_wait(server: Server, waits: list[float]) -> None:
    def later(value: str) -> Answer:
        return lambda handler, number: handler.send(429, b"{}", {"Retry-After": value})

    server.answers = [later("30"), later("tomorrow"), later("-5"), later("1e9"), good]
    assert complete(server)[0].text == "answer 4"
    assert [30 < waits[0] < 32, waits[1] < 3, waits[2] < 5, 600 < waits[3] < 610] == [True] * 4


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (400, "This model's maximum context length is 8192 tokens. However, you requested 9000"),
        (400, "The response was filtered due to the prompt triggering the content management policy: content_filter"),
        (413, "prompt is too long"),
        (422, "max_tokens must be less than the maximum length"),
        (400, "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it"),
        (500, "Context size has been exceeded."),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 3974 `inputs` tokens"),
        (422, "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000"),
        (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy."),
        (400, "data_inspection_failed: Input data may contain inappropriate content."),
        (400, "Range of input length should be [1, 30720]"),
        (403, 'The model requires moderation and your input was flagged for "violence"'),
    ],
)
def test_a_text_that_a_server_does_not_take_costs_itself_alone(server: Server, code: int, message: str) -> None:
    server.answers = [lambda handler, number: handler.send(code, json.dumps({"error": {"message": message}}).encode())]
    with pytest.raises(TooLongError, match="takes no such request .HTTP "):
        complete(server)
    assert len(server.bodies) == 1
    choice = {"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": "half"}}
    server.answers = [lambda handler, number: handler.send(200, json.dumps({"id": "x", "choices": [choice]}).encode())]
    with pytest.raises(TooLongError, match="filter has ended this completion"):
        complete(server)


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        (500, "The request took too long to process", EngineError),
        (500, "The server is overloaded: maximum number of tokens in flight reached", EngineError),
        (403, "Access to this model is forbidden by your organization's usage policy", UserError),
    ],
)
def test_what_is_no_ones_texts_fault_refuses_no_text(
    server: Server, waits: list[float], code: int, message: str, error: type[Exception]
) -> None:
    server.answers = [lambda handler, number: handler.send(code, json.dumps({"error": {"message": message}}).encode())]
    with pytest.raises(error) as raised:
        complete(server)
    assert not isinstance(raised.value, TooLongError)


@pytest.mark.parametrize("serves_others", [True, False])
def test_a_text_on_which_a_server_fails_while_it_serves_others_costs_itself_alone(
    server: Server, waits: list[float], serves_others: bool
) -> None:
    bad, other = 3, 0

    def chokes(handler: Handler, number: int) -> None:
        if handler.server.bodies[number]["seed"] == other:
            good(handler, number)
            return
        # Others are asked for one by one: when the second one comes, the first has been served.
        while serves_others and len(handler.server.bodies) < number + 3:
            time.sleep(0.01)
        status(500)(handler, number)

    async def run() -> Completion:
        async with OpenAI("model", url=server.url, retries=2) as engine:
            asked = ask("say it", "step")
            failing = asyncio.create_task(engine.complete(asked, Sampling(), bad))
            while serves_others and not failing.done():
                await engine.complete(asked, Sampling(), other)
            return await failing

    server.answers = [chokes]
    error, message = (TooLongError, "this request alone .HTTP 500") if serves_others else (EngineError, "not answer")
    with pytest.raises(error, match=message):
        asyncio.run(run())
    assert sum(sent["seed"] == bad for sent in server.bodies) == 3


@pytest.mark.parametrize(
    "message",
    ["`max_new_tokens` must be <= 4096", "Unsupported parameter: 'max_tokens' is not supported with this model"],
)
def test_a_refused_setting_is_not_taken_for_a_refused_text(server: Server, message: str) -> None:
    server.answers = [lambda handler, number: handler.send(400, json.dumps({"error": {"message": message}}).encode())]
    with pytest.raises(UserError, match="refuses a request"):
        complete(server)


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_a_refusal_is_not_asked_for_twice(server: Server, code: int) -> None:
    server.answers = [status(code)]
    with pytest.raises(UserError, match=f"refuses a request .HTTP {code}.*so it is.* check engine.model"):
        complete(server)
    assert len(server.bodies) == 1


def test_no_more_requests_are_under_way_than_allowed(server: Server) -> None:
    def slow(handler: Handler, number: int) -> None:
        time.sleep(0.02)
        good(handler, number)

    server.answers = [slow]
    assert len(complete(server, count=30, in_flight=4)) == 30
    assert 2 <= server.busiest <= 4


def test_lengths_are_measured_with_a_tokenizer_or_estimated(data_set: Any) -> None:
    engine = OpenAI("model")
    engine.open()
    assert engine.count_tokens("12345678") == 2
    with_one = OpenAI("model", tokenizer=str(data_set.stores.tokenizer))
    with_one.open()
    assert with_one.count_tokens("abc def") == len(data_set.tokenizer.encode_batch(["abc def"])[0])
