"""Latent attention beside DeepSeek's, as transformers has it, with the same weights."""

import functools
import importlib
import math

import pytest
import torch
from torch import nn

import multihead as mh
from multihead.layer.latent import MultiHeadLatentAttention
from multihead.positions import Rotary, YaRN
from tests.layer.latent_equations import forced
from tests.layer.side_by_side import compare, noisy

transformers = pytest.importorskip("transformers")

# complex numbers, as which V2 turns its features, want even sizes before them
CONFIG = {
    "hidden_size": 51,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "kv_lora_rank": 10,
    "q_lora_rank": 13,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}

YARN = {"factor": 5.0, "mscale": 1.3, "mscale_all_dim": 0.7}
LONGER = {"rope_type": "yarn", "rope_theta": 100.0, "original_max_position_embeddings": 53} | YARN

OPTIONS = {
    "plain": {},
    "queries from x": {"q_lora_rank": None},
    "biases": {"attention_bias": True},
    "yarn": {"rope_parameters": LONGER},
}
CASES = {
    **{f"V2 {name}": ("DeepseekV2", options) for name, options in OPTIONS.items()},
    **{f"V3 {name}": ("DeepseekV3", options) for name, options in OPTIONS.items()},
    "V3 halves": ("DeepseekV3", {"rope_interleave": False}),
}


def theirs_of(kind, options):
    """One attention of transformers with random numbers, and what the model around it does with x."""
    name = kind.lower().replace("v", "_v")
    room = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    config = getattr(transformers, f"{kind}Config")(**(CONFIG | options), attn_implementation="eager")
    rotary = getattr(room, f"{kind}RotaryEmbedding")(config)

    def run(module, x):
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        added = torch.zeros(1, 1, *hidden.shape, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)
        places = torch.arange(x.shape[1])[None]
        return module(x, position_embeddings=rotary(x, places), attention_mask=added)[0]

    return noisy(getattr(room, f"{kind}Attention")(config, layer_idx=1)), run


def ours_of(module):
    """The layer with the weights of one of theirs."""
    config, rope = module.config, module.config.rope_parameters
    scaling, scale = None, None
    if rope["rope_type"] == "yarn":
        scaling = YaRN(original_length=rope["original_max_position_embeddings"], **YARN)
        sharper = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1
        scale = sharper**2 / math.sqrt(6 + 4)
    pairs = "interleaved" if getattr(config, "rope_interleave", True) else "halves"
    layer = MultiHeadLatentAttention(
        config.hidden_size,
        config.num_attention_heads,
        head_dim=config.qk_nope_head_dim,
        rope_dim=config.qk_rope_head_dim,
        kv_rank=config.kv_lora_rank,
        q_rank=config.q_lora_rank,
        value_dim=config.v_head_dim,
        bias=config.attention_bias,
        scale=scale,
        norm=functools.partial(nn.RMSNorm, eps=1e-6),
        position=Rotary(config.qk_rope_head_dim, base=rope["rope_theta"], pairs=pairs, scaling=scaling),
    )
    state = {"kv_norm.weight": module.kv_a_layernorm.weight}
    if config.q_lora_rank is None:
        state["q_proj.weight"] = module.q_proj.weight
    else:
        state |= {"q_proj.weight": module.q_b_proj.weight, "q_norm.weight": module.q_a_layernorm.weight}
        state |= {f"q_down.{name}": value for name, value in module.q_a_proj.named_parameters()}
    for name, value in module.kv_a_proj_with_mqa.named_parameters():
        state[f"kv_down.{name}"], state[f"k_rope_proj.{name}"] = value.split((layer.kv_rank, layer.rope_dim))
    by_head = module.kv_b_proj.weight.unflatten(0, (layer.num_heads, -1))
    keys, values = by_head.split((layer.head_dim, layer.value_dim), 1)
    state |= {"k_proj.weight": keys.flatten(0, 1), "v_proj.weight": values.flatten(0, 1)}
    state |= {f"out_proj.{name}": value for name, value in module.o_proj.named_parameters()}
    layer.load_state_dict(state)
    return layer.eval()


def in_steps(layer, x):
    cache = mh.FixedCache(11)
    return torch.cat([layer(part, mask=mh.masks.causal(), cache=cache) for part in x.split([7, 3, 1], 1)], 1)


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_equals_transformers_in_one_pass_and_in_steps(kind, options):
    module, run = theirs_of(kind, options)
    ours, x = ours_of(module), torch.randn(2, 11, 51)
    compare(ours, module, lambda layer, x: layer(x, mask=mh.masks.causal()), run, x)
    compare(forced(ours, "absorbed"), module, in_steps, run, x)


CHANGES = {
    "pairs": lambda layer: setattr(layer, "position", Rotary(4, base=100.0)),
    "scale": lambda layer: setattr(layer, "scale", 0.3),
    "norm": lambda layer: setattr(layer, "kv_norm", None),
    "heads of the keys": lambda layer: layer.k_proj.weight.data.copy_(layer.k_proj.weight.data.roll(6, 0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_comparison_would_notice(change):
    module, run = theirs_of("DeepseekV3", {})
    ours = ours_of(module)
    change(ours)
    with pytest.raises(AssertionError, match="float32: error"):
        compare(ours, module, in_steps, run, torch.randn(2, 11, 51))
