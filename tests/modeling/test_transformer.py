"""The transformer is transformers' Llama, to the last digits of float32."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape


@pytest.mark.parametrize("shape", [Shape(64, 96, 3, 4, 2), Shape(48, 80, 2, 4, 4, tie_embeddings=True)])
def test_logits_equal_transformers_llama(shape: Shape) -> None:
    model = LanguageModel(shape, vocabulary_size=101, init_std=0.2, seed=1)
    model.configure_model()
    oracle = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rms_norm_eps=shape.norm_eps,
            rope_theta=shape.rope_theta,
            tie_word_embeddings=shape.tie_embeddings,
        )
    )
    weights = {f"model.{name}": value for name, value in model.transformer.state_dict().items()}
    oracle.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight})
    tokens = torch.randint(101, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), oracle(tokens).logits, atol=1e-5, rtol=1e-5)


def test_no_token_sees_what_comes_after_it() -> None:
    model = LanguageModel(Shape(32, 64, 2, 2, 2), vocabulary_size=50, init_std=0.3)
    model.configure_model()
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 50
    with torch.no_grad():
        first, second = model(tokens), model(changed)
    torch.testing.assert_close(first[:, :7], second[:, :7])
    assert not torch.allclose(first[:, 7:], second[:, 7:])


def test_the_seed_alone_fixes_the_initial_weights() -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        model = LanguageModel("nano", vocabulary_size=64, seed=seed)
        model.configure_model()
        return model.lm_head.weight.detach()

    assert torch.equal(weights(3, noise=0), weights(3, noise=1))
    assert not torch.equal(weights(3, noise=0), weights(4, noise=0))
