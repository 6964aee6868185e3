"""Engines that hold a model, on a tiny one that megalit has made: transformers here, vLLM where it is installed."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import DataSet
from transformers import AutoModelForCausalLM, AutoTokenizer

from megalit.errors import UserError
from megalit.modeling import hugging_face
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape
from megalit.synthesis.cleaning import answer
from megalit.synthesis.engines import TooLongError, Transformers, Vllm
from megalit.synthesis.engines.local_model import PromptEncoder, cut_at_stop, model_identity
from megalit.synthesis.items import Rejected
from megalit.synthesis.requests import Completion, Request, Sampling, ask

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def exported(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a chat template, in the Hugging Face format."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    tokenizer = data_set.tokenizer
    model = LanguageModel(Shape(64, 96, 2, 2, 2), tokenizer.vocabulary_size, init_std=0.3, seed=1)
    model.configure_model()
    hugging_face.export(model, folder, torch.float32, 256, bos=tokenizer.bos, eos=tokenizer.eos)
    tokenizer.save(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.chat_template = TEMPLATE
    loaded.save_pretrained(folder)
    return folder


def complete(
    model: Path, requests: list[Request], sampling: Sampling, seeds: list[int] | None = None, **settings: Any
) -> list[Completion]:
    async def run() -> list[Completion]:
        async with Transformers(str(model), device="cpu", **settings) as engine:
            pairs = zip(requests, seeds or range(len(requests)), strict=True)
            return await asyncio.gather(*(engine.complete(request, sampling, seed) for request, seed in pairs))

    return asyncio.run(run())


REQUESTS = [ask("abc " * n, "step") for n in (1, 9, 3, 5, 2, 7)]


def test_the_same_seed_gives_the_same_text_in_any_batch(exported: Path) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12)
    alone = complete(exported, REQUESTS, sampling, batch_size=1)
    assert complete(exported, REQUESTS, sampling, batch_size=4) == alone
    assert complete(exported, REQUESTS[::-1], sampling, list(range(6))[::-1], batch_size=6)[::-1] == alone
    others = complete(exported, REQUESTS, sampling, list(range(10, 16)))
    assert sum(one.text != other.text for one, other in zip(alone, others, strict=True)) == 6


def test_greedy_is_what_transformers_gives(exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    found = complete(exported, REQUESTS, Sampling(temperature=0, max_tokens=12))
    for request, completion in zip(REQUESTS, found, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": request.messages[0].content}], add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert completion.text == tokenizer.decode(out, skip_special_tokens=True)
        assert completion.tokens == len(out)
        assert completion.prompt_tokens == prompt["input_ids"].shape[1]


def test_samples_have_the_model_s_probabilities(exported: Path) -> None:
    """2,000 first tokens after BOS against the softmax of the logits at that temperature."""
    model = AutoModelForCausalLM.from_pretrained(exported)
    bos = AutoTokenizer.from_pretrained(exported).bos_token_id
    temperature = 3.0
    with torch.no_grad():
        logits = model(torch.tensor([[bos]])).logits[0, -1] / temperature
    # Only tokens whose text can be told from that of others: single printable bytes.
    tokenizer = AutoTokenizer.from_pretrained(exported)
    texts = [tokenizer.decode([token]) for token in range(len(logits))]
    sampling = Sampling(temperature=temperature, max_tokens=1)
    found = complete(exported, [Request((), "sample")] * 2000, sampling, chat=False, batch_size=500)
    for token in logits.softmax(0).topk(5).indices.tolist():
        expected = sum(p for p, text in zip(logits.softmax(0).tolist(), texts, strict=True) if text == texts[token])
        share = sum(completion.text == texts[token] for completion in found) / len(found)
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(found)) ** 0.5)
    few = complete(exported, [Request((), "s")] * 200, Sampling(temperature, top_k=2, max_tokens=1), chat=False)
    assert {completion.text for completion in few} <= {texts[token] for token in logits.topk(2).indices.tolist()}


def test_completions_end_at_their_limit_or_a_stop_text(exported: Path) -> None:
    (whole,) = complete(exported, REQUESTS[:1], Sampling(temperature=0, max_tokens=30))
    assert (whole.finish, whole.tokens) == ("length", 30)
    stop = whole.text[5:7]
    (stopped,) = complete(exported, REQUESTS[:1], Sampling(temperature=0, max_tokens=30, stop=(stop,)))
    assert stopped.finish == "stop"
    assert stopped.text == whole.text.partition(stop)[0]
    assert cut_at_stop("a END b STOP", ["STOP", "END"]) == ("a ", True)
    assert cut_at_stop("a", ["STOP"]) == ("a", False)


def test_the_model_s_own_settings_are_heeded_where_they_end_a_turn_and_nowhere_else(
    exported: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(exported, own)
    greedy = Sampling(temperature=0, max_tokens=30)
    (plain,) = complete(exported, REQUESTS[:1], greedy)
    encoder = PromptEncoder(str(exported), None, True)
    prompt = torch.tensor([encoder.encode(REQUESTS[0])])
    model = AutoModelForCausalLM.from_pretrained(exported)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
    tokens = out[0, prompt.shape[1] :].tolist()
    settings = {"eos_token_id": [1, tokens[4]], "repetition_penalty": 5.0, "do_sample": True, "temperature": 9.0}
    (own / "generation_config.json").write_text(json.dumps(settings))
    (ended,) = complete(own, REQUESTS[:1], greedy)
    assert ended.finish == "stop"
    assert ended.tokens == tokens.index(tokens[4]) + 1
    assert plain.text.startswith(ended.text.rstrip("\ufffd"))


def test_prompts_are_rendered_once_with_one_bos(exported: Path) -> None:
    bos = AutoTokenizer.from_pretrained(exported).bos_token_id
    chat, plain = PromptEncoder(str(exported), None, True), PromptEncoder(str(exported), None, False)
    assert chat.decode(chat.encode(ask("abc", "s"))) == "<user>abc</user><assistant>"
    assert plain.encode(ask("abc", "s"))[0] == bos
    assert plain.decode(plain.encode(ask("abc", "s"))) == "abc\n\n"
    assert plain.encode(Request((), "s")) == [bos]


def test_a_template_has_variables_and_may_open_a_thought(exported: Path, tmp_path: Path) -> None:
    thinking = tmp_path / "thinking"
    shutil.copytree(exported, thinking)
    loaded = AutoTokenizer.from_pretrained(thinking)
    loaded.chat_template = TEMPLATE + "{% if thinks is not defined or thinks %}<think>\n{% endif %}"
    loaded.save_pretrained(thinking)
    greedy = Sampling(temperature=0, max_tokens=5)
    (plain,) = complete(exported, REQUESTS[:1], greedy)
    (thought,) = complete(thinking, REQUESTS[:1], greedy)
    assert thought.text.startswith("<think>")
    assert isinstance(answer(thought, REQUESTS[0]), Rejected), "a thought that does not end is no text"
    (at_once,) = complete(thinking, REQUESTS[:1], greedy, template={"thinks": False})
    assert at_once == plain
    assert Transformers("model", template={"thinks": False}).settings["template"] == {"thinks": False}
    assert "template" not in Transformers("model").settings, "what was made without it keeps its settings"


def test_channels_are_told_from_the_text(exported: Path, tmp_path: Path) -> None:
    """What gpt-oss thinks and answers is divided by special tokens."""
    channels = tmp_path / "channels"
    shutil.copytree(exported, channels)
    loaded = AutoTokenizer.from_pretrained(channels)
    marks = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"]
    loaded.add_special_tokens({"additional_special_tokens": marks})
    loaded.chat_template = TEMPLATE + "{# <|channel|>analysis #}"
    loaded.save_pretrained(channels)
    thought = "<|channel|>analysis<|message|>We need it.<|end|><|start|>assistant<|channel|>final<|message|>"
    tokens = loaded(thought + "The river.<|return|>", add_special_tokens=False)["input_ids"]
    text = PromptEncoder(str(channels), None, True).decode(tokens)
    assert answer(Completion(text, "stop", 1, 1), REQUESTS[0]) == Completion("The river.", "stop", 1, 1)
    plain = PromptEncoder(str(exported), None, True)
    assert plain.decode([*plain.encode(REQUESTS[0]), plain.eos]) == "<user>abc </user><assistant>"  # type: ignore[list-item]


def test_a_tokenizer_s_own_code_runs_only_where_vllm_s_option_allows_it(exported: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(exported, own)
    (own / "tokenization_own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    def __call__(self, text, **_):\n"
        "        return {'input_ids': [7] * len(text)}\n"
    )
    config = json.loads((own / "tokenizer_config.json").read_text())
    config |= {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    }
    (own / "tokenizer_config.json").write_text(json.dumps(config))
    engine = Vllm(str(own), options={"trust_remote_code": True})
    engine.open()
    assert engine.count_tokens("four") == 4
    with pytest.raises(UserError, match="the tokenizer of engine.model .* cannot be loaded"):
        Vllm(str(own)).open()


def test_what_cannot_work_is_said_in_one_line(exported: Path, data_set: DataSet) -> None:
    with pytest.raises(TooLongError, match="do not fit in the model's 256"):
        complete(exported, REQUESTS[:1], Sampling(max_tokens=300))
    with pytest.raises(UserError, match="set engine.chat false for a base model"):
        PromptEncoder(str(data_set.stores.tokenizer), None, True)
    with pytest.raises(UserError, match="batch_size is 0"):
        Transformers("x", batch_size=0)


def test_a_model_is_known_by_what_lies_in_its_folder(exported: Path, tmp_path: Path) -> None:
    first = model_identity(str(exported), None)
    assert first.startswith("hf@")
    path = exported / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    try:
        assert model_identity(str(exported), None) != first
    finally:
        data[-1] ^= 1
        path.write_bytes(data)
    assert model_identity(str(exported), None) == first
    assert model_identity("some/name", None) == "some/name@main"
    assert model_identity("some/name", "v2") == "some/name@v2"


# vLLM: ``MEGALIT_VLLM_PYTHON`` names a Python that has it; megalit itself is found where it lies.
PYTHON = os.environ.get("MEGALIT_VLLM_PYTHON", sys.executable)
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}

PROBE = """
import asyncio, json, sys
from megalit.synthesis.engines import Vllm
from megalit.synthesis.requests import Request, Sampling, ask

async def main():
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    async with Vllm(sys.argv[1], options=options) as engine:
        requests = [ask("abc " * n, "step") for n in (1, 9, 3, 5, 2, 7)]
        async def run(sampling, seeds):
            pairs = zip(requests, seeds)
            return [vars(c) for c in await asyncio.gather(*(engine.complete(r, sampling, s) for r, s in pairs))]
        greedy = await run(Sampling(temperature=0, max_tokens=12), range(6))
        warm = await run(Sampling(max_tokens=12), range(6))
        again = await run(Sampling(max_tokens=12), range(6))
        try:
            await engine.complete(ask("abc " * 400, "step"), Sampling(), 0)
            refused = None
        except Exception as error:
            refused = [type(error).__name__, str(error)]
        try:  # vLLM by itself would give the 16 tokens or so that are left
            await engine.complete(ask("abc " * 30, "step"), Sampling(max_tokens=240), 0)
            shortened = None
        except Exception as error:
            shortened = [type(error).__name__, str(error)]
        batch = engine._engine.vllm_config.scheduler_config.max_num_seqs
    try:
        async with Vllm(sys.argv[1], options={**options, "max_model_len": 1000000}):
            pass
    except Exception as error:
        unloadable = [type(error).__name__, str(error)]
    with open(sys.argv[2], "w") as file:
        json.dump({"greedy": greedy, "warm": warm, "again": again, "refused": refused, "batch": batch,
                   "shortened": shortened,
                   "unloadable": unloadable}, file)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.vllm
def test_vllm_completes_as_transformers_does(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    command = [PYTHON, str(script), str(exported), str(tmp_path / "out.json")]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    expected = [vars(c) for c in complete(exported, REQUESTS, Sampling(temperature=0, max_tokens=12))]
    for completion in [*found["greedy"], *expected]:
        # vLLM leaves out a character that the limit cut in the middle.
        completion["text"] = completion["text"].rstrip("\ufffd")
    assert found["greedy"] == expected
    assert found["warm"] == found["again"] != found["greedy"]
    assert found["refused"][0] == "TooLongError"
    assert found["shortened"][0] == "TooLongError"
    assert "do not fit in vLLM's max_model_len of 256" in found["shortened"][1]
    assert found["batch"] > 128, "vLLM's batches for a program that has much to do"
    assert found["unloadable"][0] == "UserError"
    assert "max_model_len" in found["unloadable"][1]
