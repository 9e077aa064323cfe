"""A decoder of ``Config.llama``'s kind is transformers' Llama with the same weights, in its logits and its texts."""

from dataclasses import replace

import pytest
import torch

from multihead.models import Beam, Config, Decoder, generate
from tests.accuracy import check

transformers = pytest.importorskip("transformers")

VOCABULARY, LAYERS = 31, 3
STOP = 2


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(3)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "initializer_range": 0.4,
        "bos_token_id": 1,
        "eos_token_id": STOP,
        "pad_token_id": 0,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    config = replace(
        Config.llama(VOCABULARY),
        embed_dim=24,
        num_heads=6,
        num_kv_heads=2,
        decoder_layers=LAYERS,
        feedforward_dim=37,
    )
    model = Decoder(config).eval()
    state = theirs.state_dict()
    names = {"model.embed_tokens.weight": "embedding.tokens.weight", "model.norm.weight": "norm.weight"}
    names["lm_head.weight"] = "output.weight"
    parts = {
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "self_attn.o_proj": "attention.out_proj",
        "mlp.gate_proj": "feedforward.gate_proj",
        "mlp.up_proj": "feedforward.up_proj",
        "mlp.down_proj": "feedforward.down_proj",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feedforward_norm",
    }
    for layer in range(LAYERS):
        names |= {f"model.layers.{layer}.{a}.weight": f"blocks.{layer}.{b}.weight" for a, b in parts.items()}
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()}, strict=True)
    return model


def prompts(rows: int, length: int, seed: int = 0):
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_equal_logits(theirs, ours):
    text = prompts(2, 17)
    exact = ours.double()(text)
    ours.float()
    # each is within twice the other's error of the float64 model
    check(ours(text), exact, theirs(text).logits, "ours")
    check(theirs(text).logits, exact, ours(text), "theirs")
    assert exact.std() > 0.5, "logits that are all alike would prove little"


@torch.no_grad()
def test_equal_logits_with_padding_before(theirs, ours):
    text, valid = prompts(2, 11), torch.arange(11) >= torch.tensor([[0], [6]])
    found = ours(text, valid=valid)
    expected = theirs(text, attention_mask=valid.long()).logits
    torch.testing.assert_close(found[1, 6:], expected[1, 6:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)


def written(theirs, prompt, **options):
    """What transformers' own generate writes, as lists without stop tokens and padding."""
    found = theirs.generate(prompt, do_sample=False, **options)[:, prompt.shape[1] :].tolist()
    return [row[: row.index(STOP)] if STOP in row else row for row in found]


def test_equal_greedy_tokens(theirs, ours):
    prompt = prompts(7, 5)
    expected = written(theirs, prompt, max_new_tokens=23)
    assert len(set(map(len, expected))) > 1, "some should stop early"
    assert generate(ours, prompt, max_new_tokens=23, stop=[STOP]).rows() == expected


def test_equal_greedy_tokens_of_ragged_prompts(theirs, ours):
    prompt, valid = prompts(3, 7), torch.arange(7) >= torch.tensor([[0], [4], [2]])
    expected = written(theirs, prompt.masked_fill(~valid, 0), max_new_tokens=13, attention_mask=valid.long())
    assert generate(ours, prompt, valid=valid, max_new_tokens=13, stop=[STOP]).rows() == expected


@pytest.mark.parametrize("width", [2, 3, 5])
def test_equal_beams(theirs, ours, width):
    prompt = prompts(41, 5, seed=1)
    options = {"num_beams": width, "length_penalty": 0.0, "early_stopping": True}
    expected = written(theirs, prompt, max_new_tokens=13, **options)
    found = generate(ours, prompt, max_new_tokens=13, stop=[STOP], choice=Beam(width, 0.0)).rows()
    greedy = generate(ours, prompt, max_new_tokens=13, stop=[STOP]).rows()
    assert found == expected
    assert found != greedy, "a beam that finds what greedy finds would prove little"
