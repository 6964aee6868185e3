"""Models go to the Hugging Face format and back, and transformers gives the same logits."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megalit.errors import UserError
from megalit.modeling import hugging_face
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape

# Heads are 32 wide: vLLM's attention on CPU takes none that are smaller.
SHAPES = {
    "llama": Shape(128, 96, 3, 4, 2, rope_theta=50_000.0),
    "tied": Shape(64, 80, 2, 2, 2, tie_embeddings=True, norm_eps=1e-6),
    "qwen3": Shape(128, 96, 2, 4, 2, qk_norm=True),
}


def build(shape: Shape | str, **settings: Any) -> LanguageModel:
    model = LanguageModel(shape, init_std=0.1, seed=1, **{"vocabulary_size": 101, **settings})
    model.configure_model()
    # Norms are 1 at the start, which would hide a mix-up.
    for name, parameter in model.named_parameters():
        if "norm" in name and "weights" not in settings:
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_gives_the_same_logits_and_the_way_back_too(name: str, tmp_path: Path) -> None:
    model = build(SHAPES[name])
    hugging_face.export(model, tmp_path / "hf", torch.float32, 64, bos=0, eos=1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if name == "qwen3" else "LlamaForCausalLM")
    tokens = torch.randint(101, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    # Their own writing of it, in their own order and file names.
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    for folder in ("hf", "theirs"):
        again = build("300m", weights=str(tmp_path / folder), vocabulary_size=None)
        assert again.shape == model.shape
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)


def test_weights_of_other_tokens_are_refused_and_those_of_shorter_windows_told(tmp_path: Path) -> None:
    def plan(tokenizer: str | None, context_length: int) -> Any:
        return SimpleNamespace(vocabulary_size=101, tokenizer=tokenizer, context_length=context_length)

    model = build(SHAPES["llama"])
    hugging_face.export(model, tmp_path / "unknown", torch.float32, 64)
    model.tokenizer = "ours"
    hugging_face.export(model, tmp_path / "hf", torch.float32, 64)
    known, unknown = (LanguageModel(weights=str(tmp_path / name)) for name in ("hf", "unknown"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known.check_weights(plan("ours", 64))
        known.check_weights(plan(None, 64))
        unknown.check_weights(plan("theirs", 64))
    with pytest.raises(UserError, match="hf were trained on another tokenizer's tokens than those of the token stores"):
        known.check_weights(plan("theirs", 64))
    with pytest.warns(UserWarning, match="the run goes on as it was begun"):
        known.check_weights(plan("theirs", 64), continues=True)
    with pytest.warns(UserWarning, match="hf are for windows of 64 tokens and data.context_length is 65"):
        known.check_weights(plan("ours", 65))


def test_a_larger_vocabulary_keeps_the_rows_that_are_known(tmp_path: Path) -> None:
    model = build(SHAPES["llama"])
    hugging_face.export(model, tmp_path / "hf", torch.float32, 64)
    larger = build("300m", weights=str(tmp_path / "hf"), vocabulary_size=110)
    assert torch.equal(larger.lm_head.weight[:101], model.lm_head.weight)
    assert larger.lm_head.weight[101:].detach().std() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "holds a model of type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "holds a model with rope_scaling"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"head_dim": 64}, "head_dim 64"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_models_that_this_transformer_is_not_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    hugging_face.export(build(SHAPES["llama"]), tmp_path / "hf", torch.float32, 64)
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        LanguageModel(weights=str(tmp_path / "hf"))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    hugging_face.export(build(SHAPES["llama"]), tmp_path / "hf", torch.float32, 64)
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    with pytest.raises(UserError, match=rf"{name} with the shape \(95, 128\) and the model needs \(96, 128\)"):
        build("300m", weights=str(tmp_path / "hf"))
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"holds no tensor {name}"):
        build("300m", weights=str(tmp_path / "hf"))
    with pytest.raises(UserError, match="holds no config.json"):
        LanguageModel(weights=str(tmp_path / "nothing"))


def greedy(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


PROMPTS = [[0, 17, 5, 99], [0, 3], [0, *range(40, 60)]]


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_continues_greedily_to_the_same_tokens(name: str, tmp_path: Path) -> None:
    model = build(SHAPES[name])
    hugging_face.export(model, tmp_path / "hf", torch.float32, 128, bos=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        # Without a mask, BOS would be taken for padding.
        out = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False)
        assert out[0, len(prompt) :].tolist() == greedy(model, prompt, 20)


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
folder, prompts, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
llm = LLM(folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=128)
params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)
outs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
with open(output, "w") as file:
    json.dump([list(out.outputs[0].token_ids) for out in outs], file)
"""


@pytest.mark.vllm
@pytest.mark.parametrize("name", SHAPES)
def test_vllm_continues_greedily_to_the_same_tokens(name: str, tmp_path: Path) -> None:
    """Run by the Python that ``MEGALIT_VLLM_PYTHON`` names, or by this one."""
    model = build(SHAPES[name])
    hugging_face.export(model, tmp_path / "hf", torch.float32, 128, bos=0)
    python = os.environ.get("MEGALIT_VLLM_PYTHON", sys.executable)
    command = [python, "-c", VLLM, str(tmp_path / "hf"), json.dumps(PROMPTS), str(tmp_path / "out.json")]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "out.json").read_text()) == [greedy(model, prompt, 20) for prompt in PROMPTS]
