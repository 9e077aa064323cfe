"""Attention blocks of transformers beside the layers made of their weights."""

import importlib

import pytest
import torch
from torch import nn

from multihead import masks, positions
from multihead.layer.conversions import _READERS, from_transformers
from tests.accuracy import random_bool
from tests.layer.side_by_side import Adapted, compare, noisy, pruned_in

transformers = pytest.importorskip("transformers")

BATCH, QUERIES, KEYS, EMBED, HEADS, KV_HEADS, HEAD_DIM = 2, 7, 11, 42, 6, 3, 10

PATHS = {path.rpartition(".")[2]: path for path in _READERS}
FAMILIES = {name: _READERS[path].__name__ for name, path in PATHS.items()}
"""Every class that is understood, and the function that reads it."""

CONFIGS = {
    "_bert": {"hidden_size": EMBED, "num_attention_heads": HEADS, "attention_probs_dropout_prob": 0.25},
    "_gpt2": {"n_embd": EMBED, "n_head": HEADS, "attn_pdrop": 0.25},
    "_llama": {
        "hidden_size": EMBED,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "attention_dropout": 0.25,
        "attention_bias": True,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "rms_norm_eps": 0.1,
        "query_pre_attn_scalar": 17,
        "attn_logit_softcapping": 2.0,
        "attention_multiplier": 0.37,
    },
    "_vit": {"hidden_size": EMBED, "num_attention_heads": HEADS, "attention_probs_dropout_prob": 0.25},
}


class Block:
    """One attention block of transformers with random numbers, and how the model around it runs it."""

    def __init__(self, name, *, implementation="eager", cross=False, **config):
        self.room = importlib.import_module(PATHS[name].rpartition(".")[0])
        self.kind, self.family, self.cross = name.removesuffix("Attention"), FAMILIES[name], cross
        options = CONFIGS[self.family] | config
        self.config = getattr(transformers, f"{self.kind}Config")(**options, attn_implementation=implementation)
        arguments = {} if self.family == "_vit" else {"layer_idx": 1}
        arguments |= {"is_cross_attention": True} if cross else {}
        self.module = noisy(getattr(self.room, name)(self.config, **arguments))

    def run(self, module, visible, x, context=None):
        """What the model computes of x and, where this is cross-attention, of a context."""
        added = torch.zeros(visible.shape, dtype=x.dtype).masked_fill(~visible, torch.finfo(x.dtype).min)
        if self.family == "_bert":
            heads = module.self(x, attention_mask=added, encoder_hidden_states=context)[0]
            return module.output.dense(heads)
        if self.family == "_gpt2":
            given = {"encoder_attention_mask" if self.cross else "attention_mask": added}
            return module(x, encoder_hidden_states=context, **given)[0]
        if self.family == "_llama":
            rotary = getattr(self.room, f"{self.kind}RotaryEmbedding")(self.config)
            places = torch.arange(x.shape[1])[None]
            return module(x, position_embeddings=rotary(x, places), attention_mask=added)[0]
        return module(x, attention_mask=added)[0]

    def compare(self, ours, visible):
        tokens = (QUERIES, KEYS) if self.cross else (QUERIES,)
        compare(
            ours,
            self.module,
            lambda layer, *given: layer(*given, mask=visible),
            lambda module, *given: self.run(module, visible, *given),
            *(torch.randn(BATCH, length, EMBED) for length in tokens),
        )


EVERYTHING = torch.ones(BATCH, 1, QUERIES, QUERIES, dtype=torch.bool)
VISIBLE = {
    "everything": EVERYTHING,
    "causal": EVERYTHING.tril(),
    "padding": (torch.tensor([QUERIES, 5])[:, None, None, None] > torch.arange(QUERIES)).expand_as(EVERYTHING),
}


@pytest.mark.parametrize("visible", VISIBLE.values(), ids=VISIBLE)
@pytest.mark.parametrize("name", PATHS)
def test_equals_transformers(name, visible):
    block = Block(name)
    block.compare(from_transformers(block.module), visible)


@pytest.mark.parametrize("name", ["BertAttention", "GPT2Attention", "LlamaAttention", "ViTAttention"])
def test_equals_the_path_through_sdpa(name):
    block = Block(name, implementation="sdpa")
    block.compare(from_transformers(block.module), EVERYTHING.tril())


@pytest.mark.parametrize("name", PATHS)
def test_a_fused_layer_equals_transformers(name):
    block = Block(name)
    layer = from_transformers(block.module, fused=True)
    assert layer.qkv_proj.weight.shape[0] == (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim
    block.compare(layer, EVERYTHING.tril())


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family in ("_bert", "_gpt2")])
def test_cross_attention_equals_transformers(name):
    block = Block(name, cross=True)
    for fused in (False, True):
        layer = from_transformers(block.module, fused=fused)
        block.compare(layer, random_bool(BATCH, 1, QUERIES, KEYS, seed=3))


LONGER = {"factor": 5.0, "original_max_position_embeddings": 53}
ROTATIONS = {
    "linear": {"factor": 3.0},
    "llama3": LONGER | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": LONGER,
    "yarn, its ramp": LONGER | {"beta_fast": 17.0, "beta_slow": 0.5, "truncate": False},
    "yarn, the usual ramp": LONGER | {"beta_fast": None, "beta_slow": 0},
    "yarn, sharper": LONGER | {"attention_factor": 1.7},
    "yarn, both scales": LONGER | {"mscale": 1.3, "mscale_all_dim": 0.7},
    "yarn, one scale": LONGER | {"mscale": 1.3},
}


def rotated(name):
    kind = name.partition(",")[0]
    return Block("LlamaAttention", rope_parameters={"rope_type": kind, "rope_theta": 100.0} | ROTATIONS[name])


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotation_equals_transformers(name):
    block = rotated(name)
    ours = from_transformers(block.module)
    block.compare(ours, EVERYTHING.tril())
    ours.position = positions.Rotary(HEAD_DIM, base=100.0)
    with pytest.raises(AssertionError, match="float32: error"):
        block.compare(ours, EVERYTHING.tril())


def test_every_option_of_yarn_counts_that_counts_there():
    """Which of the turns above differ from plain YaRN's: an option that were forgotten would not show beside none."""
    turns = {name: from_transformers(rotated(name).module).position for name in ROTATIONS if name.startswith("yarn")}
    numbers = {name: (turn.frequencies, turn.amplitude) for name, turn in turns.items()}
    same = {name for name, found in numbers.items() if found == numbers["yarn"]}
    assert same == {"yarn", "yarn, the usual ramp", "yarn, one scale"}


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_scale_of_gpt2(scaled, by_layer):
    block = Block("GPT2Attention", scale_attn_weights=scaled, scale_attn_by_inverse_layer_idx=by_layer)
    ours = from_transformers(block.module)
    assert (ours.scale is None) == (scaled and not by_layer)
    block.compare(ours, EVERYTHING.tril())


def test_gemma2_without_softcap():
    block = Block("Gemma2Attention", attn_logit_softcapping=None)
    ours = from_transformers(block.module)
    assert ours.softcap is None
    block.compare(ours, EVERYTHING.tril())


@pytest.mark.parametrize("name", ["LlamaAttention", "ViTAttention"])
@pytest.mark.parametrize("bias", [False, True])
def test_only_projections_that_had_a_bias_have_one(name, bias):
    block = Block(name, attention_bias=bias, qkv_bias=bias)
    ours = from_transformers(block.module)
    assert (ours.q_proj.bias is not None) == bias
    assert (ours.out_proj.bias is not None) == (name == "ViTAttention" or bias)
    block.compare(ours, EVERYTHING)


def test_the_whole_of_berts_block():
    """What is not taken is dropout, the residual and its norm."""
    block = Block("BertAttention").module
    ours, x = from_transformers(block), torch.randn(BATCH, QUERIES, EMBED)
    compare(
        nn.ModuleList([ours, block.output.LayerNorm]),
        block,
        lambda parts, x: parts[1](x + parts[0](x)),
        lambda block, x: block(x)[0],
        x,
    )


@pytest.mark.parametrize(
    ("kind", "window", "mask"),
    [
        ("Llama", None, masks.causal()),
        ("Mistral", 3, masks.causal() & masks.sliding_window(3)),
        ("GPT2", None, masks.causal()),
    ],
)
def test_inside_a_model(kind, window, mask):
    """The masks and positions that the model makes are those that the documentation says to pass."""
    config = getattr(transformers, f"{kind}Config")(
        **CONFIGS["_gpt2" if kind == "GPT2" else "_llama"],
        num_hidden_layers=2,
        intermediate_size=13,
        vocab_size=17,
        sliding_window=window,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = noisy(getattr(transformers, f"{kind}Model")(config))
    block = model.h[1].attn if kind == "GPT2" else model.layers[1].self_attn
    seen = {}

    def keep(_, arguments, named, output):
        seen.update(x=named["hidden_states"] if "hidden_states" in named else arguments[0], output=output[0])

    block.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(torch.randint(17, (BATCH, QUERIES), generator=torch.Generator().manual_seed(1)))
        ours = from_transformers(block)
        found = ours(seen["x"], mask=mask)
        unmasked = ours(seen["x"])
    torch.testing.assert_close(found, seen["output"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(unmasked, seen["output"], atol=1e-3)


def transposed(layer):
    layer.out_proj.weight.data = layer.out_proj.weight.data.t()


def swapped(layer):
    layer.q_proj, layer.k_proj = layer.k_proj, layer.q_proj


def swapped_norms(layer):
    layer.q_norm, layer.k_norm = layer.k_norm, layer.q_norm


def swapped_heads(layer):
    layer.v_proj.weight.data = layer.v_proj.weight.data.roll(HEAD_DIM, 0)


def interleaved(layer):
    layer.position = positions.Rotary(HEAD_DIM, base=100.0, pairs="interleaved")


def smaller_epsilon(layer):
    layer.q_norm.eps = layer.k_norm.eps = 1e-6


def without(name):
    def remove(layer):
        setattr(layer, name, None)

    return remove


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("BertAttention", swapped),
        ("GPT2Attention", transposed),
        ("LlamaAttention", interleaved),
        ("LlamaAttention", without("position")),
        ("LlamaAttention", swapped_heads),
        ("Qwen3Attention", swapped_norms),
        ("Qwen3Attention", smaller_epsilon),
        ("Gemma2Attention", without("softcap")),
        ("GraniteAttention", without("scale")),
    ],
)
def test_the_comparison_notices(name, wrong):
    block = Block(name)
    ours = from_transformers(block.module)
    wrong(ours)
    with pytest.raises(AssertionError, match="float32: error"):
        block.compare(ours, EVERYTHING.tril())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", PATHS)
def test_what_is_kept(name, training):
    block = Block(name).module.to(torch.bfloat16).train(training)
    before = {parameter.data_ptr() for parameter in block.parameters()}
    state = torch.get_rng_state()
    ours = from_transformers(block)
    assert torch.equal(torch.get_rng_state(), state)
    assert ours.dropout == 0.25
    assert all(module.training == training for module in ours.modules())
    parameters = list(ours.parameters())
    assert {(parameter.dtype, parameter.device.type) for parameter in parameters} == {(torch.bfloat16, "cpu")}
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in parameters)
    assert not before & {parameter.data_ptr() for parameter in parameters}
    assert not any(requires for requires in map(_learns, from_transformers(block.requires_grad_(False)).parameters()))


def _learns(parameter):
    return parameter.requires_grad


def test_rotation_stays_exact_and_on_the_device():
    block = Block("LlamaAttention").module
    wide = from_transformers(block.to(torch.bfloat16)).position.signed_frequencies.kept
    assert wide.dtype == torch.float32
    assert from_transformers(block.to("meta")).position.signed_frequencies.kept.device.type == "meta"


def with_part(name, part, value, **config):
    block = Block(name, **config).module
    parent, _, child = part.rpartition(".")
    setattr(block.get_submodule(parent), child, value)
    return block


def without_part(name, part):
    block = Block(name).module
    delattr(block, part)
    return block


def turned(**parameters):
    block = Block("LlamaAttention").module
    block.config.rope_parameters = parameters
    return block


class Foreign(nn.Module):
    """A module of another library."""


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: Block("BertAttention").module.self,
            r"transformers\.models\.bert\.modeling_bert\.BertSelfAttention is no attention block that is understood; "
            "of transformers' these are: BertAttention, .* and VivitAttention",
        ),
        (lambda: nn.MultiheadAttention(EMBED, HEADS), r"activation\.MultiheadAttention is no attention block"),
        (lambda: None, "NoneType is no attention block"),
        (
            lambda: with_part("LlamaAttention", "forward", print),
            "LlamaAttention whose forward was replaced is no attention block",
        ),
        (
            lambda: with_part("LlamaAttention", "q_proj", Adapted(EMBED, HEADS * HEAD_DIM)),
            r"q_proj of this LlamaAttention is not to be copied \(\S+Adapted, no plain nn\.Linear\): merge adapters",
        ),
        (
            lambda: with_part("GPT2Attention", "c_attn.forward", print),
            r"c_attn of this GPT2Attention .*Conv1D whose forward was replaced, no plain",
        ),
        (
            lambda: pruned_in(Block("ViTAttention").module, "v_proj"),
            r"v_proj of this ViTAttention is not to be copied \(whose weight is no plain parameter\)",
        ),
        (
            lambda: with_part("BertAttention", "self", Foreign()),
            r"self of this BertAttention is a \S+Foreign, not one of transformers",
        ),
        (
            lambda: with_part("Qwen3Attention", "k_norm", nn.RMSNorm(HEAD_DIM)),
            r"k_norm of this Qwen3Attention is a \S+RMSNorm, not one of transformers",
        ),
        (
            lambda: pruned_in(Block("Qwen3Attention").module, "q_norm"),
            "weight of this Qwen3RMSNorm is a Tensor, expected a plain parameter",
        ),
    ],
)
def test_refuses_what_it_does_not_know(module, message):
    with pytest.raises(TypeError, match=message):
        from_transformers(module())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: without_part("ViTAttention", "o_proj"),
            "this ViTAttention is not built as transformers 5.23 builds it: .*no attribute 'o_proj'",
        ),
        (
            lambda: turned(rope_type="dynamic", rope_theta=100.0, factor=2.0),
            r"rotation of the type 'dynamic' \(config\.rope_parameters\) is not understood: "
            "default, linear, llama3 and yarn are",
        ),
        (lambda: turned(rope_theta=100.0, partial_rotary_factor=0.5), "turn a share of the features"),
        (
            lambda: turned(rope_theta=100.0, mrope_section=[2, 3]),
            r"for rotation of the type 'default', config\.rope_parameters hold mrope_section\.",
        ),
        (
            lambda: turned(rope_type="yarn", odd=1),
            "'yarn', .* hold odd and lack rope_theta, factor and original_max_position_embeddings",
        ),
        (turned, "'default', .* lack rope_theta"),
        (lambda: turned(rope_type="linear", rope_theta=100.0, factor=0.5), "factor is 0.5, expected a number of at"),
    ],
)
def test_refuses_options_that_the_layer_lacks(module, message):
    with pytest.raises(ValueError, match=message):
        from_transformers(module())
