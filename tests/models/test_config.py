"""What a model is made of: validated, and the same after JSON."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multihead.models import Config
from tests.models.made import config


def test_base_is_the_papers():
    """Vaswani et al. 2017, table 3 and section 5.4."""
    base = Config.base(37_000)
    assert (base.embed_dim, base.feedforward_dim, base.num_heads, base.width_of_head) == (512, 2048, 8, 64)
    assert (base.encoder_layers, base.decoder_layers, base.dropout) == (6, 6, 0.1)
    assert (base.activation, base.norm, base.norm_first, base.position) == ("relu", "layer", False, "sinusoidal")
    assert base.tied_embeddings
    assert base.scale_embeddings


def test_llama_is_a_decoder_alone():
    llama = Config.llama()
    assert (llama.encoder_layers, llama.decoder_layers, llama.width_of_head) == (0, 32, 128)
    assert (llama.activation, llama.norm, llama.norm_first, llama.position) == ("swiglu", "rms", True, "rotary")
    assert (llama.vocab_size, llama.embed_dim, llama.feedforward_dim) == (32_000, 4096, 11_008)
    assert (llama.dropout, llama.attention_dropout) == (0.0, 0.0)
    assert not llama.bias


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "embed_dim": st.sampled_from([24, 48]),
            "num_kv_heads": st.sampled_from([None, 1, 2, 3, 6]),
            "head_dim": st.sampled_from([None, 2, 10]),
            "activation": st.sampled_from(["relu", "gelu", "swiglu"]),
            "norm": st.sampled_from(["layer", "rms"]),
            "position": st.sampled_from(["sinusoidal", "rotary", "alibi", "t5", "none"]),
            "dropout": st.floats(0, 1, exclude_max=True),
            "softcap": st.none() | st.floats(min_value=1e-3, max_value=1e3),
            "target_vocab_size": st.none() | st.integers(1, 1000),
            "sinks": st.booleans(),
        },
    )
)
def test_json_and_back(changes):
    before = config(**changes)
    after = Config.from_json(before.to_json())
    assert after == before
    assert hash(after) == hash(before)


def test_json_keeps_every_field():
    before = Config(
        vocab_size=7,
        target_vocab_size=11,
        embed_dim=24,
        encoder_layers=2,
        decoder_layers=3,
        num_heads=6,
        num_kv_heads=3,
        head_dim=10,
        feedforward_dim=17,
        activation="gelu",
        norm="rms",
        norm_first=True,
        norm_eps=1e-3,
        bias=False,
        position="learned",
        max_length=29,
        rotary_base=100.0,
        scale_embeddings=False,
        tied_embeddings=False,
        dropout=0.25,
        attention_dropout=0.5,
        qk_norm=True,
        output_gate=True,
        softcap=30.0,
        sinks=True,
    )
    assert not [field.name for field in dataclasses.fields(Config) if getattr(before, field.name) == field.default]
    assert Config.from_json(before.to_json()) == before


@pytest.mark.usefixtures("as_users_run")
def test_json_fills_in_what_is_missing():
    assert Config.from_json('{"vocab_size": 7}') == Config(vocab_size=7)
    assert Config.from_json('{"vocab_size": 7, "softcap": 30}').softcap == 30.0


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "this is no JSON"),
        ("{", ValueError, "this is no JSON"),
        ("[" * 100_000, ValueError, "this is no JSON"),
        ("[7]", TypeError, "a configuration is a JSON object of names and values, not '.7.' of type list"),
        ("{}", ValueError, "vocab_size is missing"),
        ('{"vocab_size": 7, "num_head": 2}', ValueError, "'num_head' is no field of a configuration.*num_heads"),
        ('{"vocab_size": 7, "zz": 2}', ValueError, "'zz' is no field of a configuration: did you mean vocab_size"),
        ('{"vocab_size": "7"}', TypeError, "vocab_size is '7' of type str, expected int"),
        ('{"vocab_size": 7.0}', TypeError, "vocab_size is '7.0' of type float, expected int"),
        ('{"vocab_size": true}', TypeError, "vocab_size is 'True' of type bool, expected int"),
        ('{"vocab_size": 7, "num_kv_heads": "2"}', TypeError, "num_kv_heads is '2' of type str, expected int or None"),
        ('{"vocab_size": 7, "softcap": true}', TypeError, "softcap is 'True' of type bool, expected float or None"),
        ('{"vocab_size": 7, "bias": 1}', TypeError, "bias is '1' of type int, expected bool"),
        ('{"vocab_size": 7, "norm": ["rms"]}', ValueError, "norm=.* is none of 'layer' and 'rms'"),
        ('{"vocab_size": 7, "dropout": NaN}', ValueError, "dropout is nan, expected a probability below 1"),
        ('{"vocab_size": 7, "norm_eps": Infinity}', ValueError, "norm_eps is inf, expected a positive number"),
        (f'{{"vocab_size": 7, "softcap": 1{"0" * 400}}}', TypeError, "softcap is '1000.* of type int, expected float"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_text_is_data(text, error, message):
    with pytest.raises(error, match=message) as caught:
        Config.from_json(text)
    assert len(str(caught.value)) < 400


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0, expected a positive number"),
        ({"target_vocab_size": -1}, "target_vocab_size is -1, expected a positive number"),
        ({"embed_dim": 0}, "embed_dim is 0, expected a positive number"),
        ({"num_heads": 0}, "num_heads is 0, expected a positive number"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0, expected a positive number"),
        ({"head_dim": 0}, "head_dim is 0, expected a positive number"),
        ({"feedforward_dim": 0}, "feedforward_dim is 0, expected a positive number"),
        ({"feedforward_dim": 1 << 31}, "feedforward_dim is 2147483648, expected a positive number below"),
        ({"embed_dim": 1 << 40}, "embed_dim is 1099511627776, expected a positive number below"),
        ({"num_heads": 5, "num_kv_heads": None}, "embed_dim=24 does not split into num_heads=5: try 1, 2, 3, 4"),
        ({"num_kv_heads": 4}, "num_heads=6 is not a multiple of num_kv_heads=4.*try 1, 2, 3 or 6"),
        ({"activation": "tanh"}, "activation='tanh' is none of 'relu', 'gelu' and 'swiglu'"),
        ({"position": "rope"}, "position='rope' is none of 'sinusoidal', 'learned', 'rotary'"),
        ({"position": "learned", "max_length": None}, "max_length is None, expected a positive number"),
        ({"position": "learned", "max_length": 0}, "max_length is 0, expected a positive number"),
        ({"max_length": 5}, "max_length=5 is for learned positions, and position='sinusoidal' has no limit"),
        ({"position": "rotary", "head_dim": 5}, "head_dim is 5, expected an even number"),
        ({"embed_dim": 21, "num_heads": 3}, "embed_dim is 21, expected an even number"),
        ({"encoder_layers": -1}, "encoder_layers is -1, expected 0 to 10000 blocks"),
        ({"encoder_layers": 10_001}, "encoder_layers is 10001, expected 0 to 10000 blocks"),
        ({"decoder_layers": 1 << 40}, "decoder_layers is 1099511627776, expected 0 to 10000 blocks"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1, expected a probability"),
        ({"softcap": 0.0}, "softcap is 0.0, expected a positive number"),
        ({"rotary_base": -1.0}, "rotary_base is -1.0, expected a positive number"),
    ],
    ids=str,
)
def test_refuses_with_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_largest_numbers():
    largest = config(vocab_size=(1 << 31) - 1, encoder_layers=10_000, decoder_layers=10_000)
    assert Config.from_json(largest.to_json()) == largest


def test_is_plain_data():
    """Every field survives JSON as it is, so a file can say all that a configuration can."""
    values = dataclasses.asdict(config())
    assert json.loads(json.dumps(values)) == values
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"cannot assign to field .embed_dim."):
        config().embed_dim = 3
