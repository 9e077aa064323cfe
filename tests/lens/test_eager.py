"""Models of transformers on their eager path, on FlexAttention and on functions that others registered."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from multihead import Statistics, masks
from multihead.errors import CheckError, ObservationError, UnsupportedAttentionError
from multihead.lens import observe
from tests.lens.families import FAMILIES, GPT_OSS, eager_weights, model_of, with_attention
from tests.lens.hosts import bert, flat, gpt2, ids, llama, nothing_patched, observed, padded, same, t5, whole_rows


def test_masks_are_found_and_the_weights_that_the_model_returns_are_seen():
    model = with_attention(llama(), "eager")
    inputs = {"input_ids": ids(2, 11), "attention_mask": padded(11, 7), "output_attentions": True}
    theirs = model(**inputs).attentions
    seen = observed(model, **inputs, options={"statistics": whole_rows(11)})
    assert isinstance(seen.layers[0].mask, masks.And)
    assert seen.layers[0].mask is seen.layers[1].mask
    assert seen.layers[0].k.shape[1] == 2
    for layer, weights in zip(seen.layers, theirs, strict=True):
        assert torch.allclose(layer.statistics.rows, weights, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["Llama", "BERT", "Gemma 2", "T5"])
def test_precisions(name, dtype):
    family = FAMILIES[name]
    model = with_attention(family.make(), "eager").to(dtype)
    inputs = family.inputs() | {"attention_mask": padded(11, 7)}
    assert observed(model, **inputs).check().passed


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        seen = observed(with_attention(llama(), "eager"), input_ids=ids(2, 7), attention_mask=padded(7, 5))
    assert seen.check().passed


def test_gradients_and_dropout():
    def gradients(watched):
        model = with_attention(bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), "eager").train()
        torch.manual_seed(7)
        if watched:
            with observe(model) as seen:
                output = model(input_ids=ids(2, 7)).last_hidden_state
            with pytest.raises(CheckError, match="dropout was on"):
                seen.check()
        else:
            output = model(input_ids=ids(2, 7)).last_hidden_state
        output.square().sum().backward()
        return [output, *(p.grad for p in model.parameters() if p.grad is not None)]

    assert same(gradients(watched=False), gradients(watched=True))


def test_a_misunderstood_call_would_be_noticed(monkeypatch):
    """Without its sinks, gpt-oss does not compute what would be seen: the check tells."""
    from multihead.lens.adapters import interface

    model = with_attention(model_of("GptOss", GPT_OSS, "ForCausalLM")(), "eager")
    bound = interface.bound
    monkeypatch.setattr(interface, "bound", lambda *args: bound(*args) | {"s_aux": None})
    with torch.no_grad(), observe(model) as seen:
        model(input_ids=ids(2, 7))
    with pytest.raises(CheckError, match="2 of 2 layers do not agree"):
        seen.check()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_generation(make):
    model = with_attention(make(), "eager")
    inputs = {"input_ids": ids(1, 7), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs)
    with observe(model) as seen:
        assert torch.equal(model.generate(**inputs), plain)
    assert nothing_patched()
    assert seen.check().passed
    assert [(run[0].sizes.queries, run[0].sizes.keys) for run in seen.runs][:3] == [(7, 7), (1, 8), (1, 9)]


def test_eager_sinks_that_rescale_the_output():
    """Granite multiplies the output by 1 minus the sink's share, which is the same as one more key."""
    from tests.lens.families import GROUPED

    model = with_attention(model_of("GraniteSWA", GROUPED, "ForCausalLM")(), "eager")
    seen = observed(model, input_ids=ids(2, 7), options={"statistics": Statistics(sink=True)})
    assert seen.check().passed
    assert (seen.layers[0].statistics.sink > 0).all()


def test_two_kinds_of_eager_and_fused_in_one_model():
    model = FAMILIES["LLaVA"].make()
    model.model.vision_tower.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"
    inputs = FAMILIES["LLaVA"].inputs()
    model(**inputs)
    seen = observed(model, **inputs)
    assert seen.check().passed
    assert len(seen.layers) == 4


def test_weights_in_code_of_the_model_are_refused():
    """GPT-2 asks for its attention function and, with this option, does not use it."""
    model = with_attention(gpt2(reorder_and_upcast_attn=True), "eager")
    with (
        pytest.raises(
            UnsupportedAttentionError,
            match=r'layer 0 \(transformer.h.0.attn\) cannot be.*code of its own.*set_attn_implementation\("sdpa"\), or '
            r"call multihead.lens.register_transformers\(\)",
        ),
        observe(model),
    ):
        model(input_ids=ids(1, 5))
    assert nothing_patched()
    assert observed(with_attention(model, "sdpa"), input_ids=ids(1, 5)).check().passed


def test_sinks_of_each_query_are_refused():
    from multihead.lens.adapters import interface
    from multihead.lens.masks_found import MaskFinder

    given = {"sinks": torch.zeros(1, 2, 3, 1)}
    with pytest.raises(UnsupportedAttentionError, match="its sinks differ from query to query"):
        interface.eager(torch.nn.Identity(), inspect.signature, given, torch.zeros(1), MaskFinder())


def test_a_boolean_mask_is_added():
    """Eager adds whatever mask it gets: True is 1 there."""
    from transformers.models.bert.modeling_bert import eager_attention_forward as function

    from multihead.lens.adapters import interface
    from multihead.lens.masks_found import MaskFinder
    from multihead.lens.measuring import Wanted, sight_of

    module, q = torch.nn.Identity(), torch.randn(2, 3, 5, 7)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    output, weights = function(module, q, q, q, mask)
    finder = MaskFinder()
    attention = interface.eager(module, function, interface.bound(function, (q, q, q, mask), {}), output, finder)
    wanted = Wanted(0, "", 0, (0, 1, 2), None, Statistics(rows=tuple(range(5))), qk=True, verify=True)
    sight = sight_of(attention, wanted, finder)
    assert sight.check.passed
    assert torch.allclose(sight.layer.statistics.rows, weights, atol=1e-6)


@pytest.fixture
def own_function(monkeypatch):
    """Registers an attention function of the user's under the name "own"."""

    def put(function):
        monkeypatch.setitem(AttentionInterface._global_mapping, "own", function)
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, "own", sdpa_mask)
        return with_attention(bert(), "own")

    return put


def test_a_registered_function_is_seen_by_what_it_calls(own_function):
    def fused(module, query, key, value, attention_mask, scaling=None, **kwargs):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return out.transpose(1, 2), None

    seen = observed(own_function(fused), input_ids=ids(2, 7))
    assert seen.check().passed
    assert {layer.host for layer in seen.layers} == {"sdpa"}


def test_a_registered_function_that_calls_nothing_known_is_refused(own_function):
    def multiplied(module, query, key, value, attention_mask, scaling=None, **kwargs):
        weights = (query @ key.transpose(-2, -1) * scaling).softmax(-1)
        return (weights @ value).transpose(1, 2), weights

    model = own_function(multiplied)
    with (
        pytest.raises(
            UnsupportedAttentionError, match='of attn_implementation="own" calls no attention that the lens knows: call'
        ),
        observe(model),
    ):
        model(input_ids=ids(1, 5))
    plain = flat(model(input_ids=ids(1, 5)))
    with warnings.catch_warnings(), observe(model, unsupported="skip"):
        warnings.simplefilter("ignore")
        assert same(model(input_ids=ids(1, 5)), plain)
    assert nothing_patched()


def test_without_sdpa_the_advice_is_eager():
    model = FAMILIES["gpt-oss"].make()
    model.config._attn_implementation_internal = "flash_attention_3"
    with pytest.raises(
        ObservationError,
        match=r'GptOssForCausalLM uses.*"flash_attention_3".*call model.set_attn_implementation\("eager"\), or call '
        r'multihead.lens.register_transformers\(\) and model.set_attn_implementation\("multihead"\)',
    ):
        observe(model).__enter__()


@pytest.mark.parametrize("make", [t5, bert])
def test_nothing_stays_after_an_error(make):
    model = with_attention(make(), "eager")
    with pytest.raises(IndexError), observe(model):
        model(input_ids=torch.full((1, 5), 99))
    assert nothing_patched()


def test_weights_of_a_module_by_path():
    """The oracle of these tests takes each module's own answer: it does not know of the lens."""
    found = eager_weights(bert(), {"input_ids": ids(2, 7)})
    assert set(found) == {f"encoder.layer.{i}.attention.self" for i in range(2)}
    assert torch.allclose(found["encoder.layer.0.attention.self"].sum(-1), torch.ones(2, 3, 7))
