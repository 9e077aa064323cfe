"""Models of transformers that compute with this library's own attention: outputs and gradients are those of eager."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AttentionInterface, AttentionMaskInterface, StaticCache

from multihead.errors import NoKernelError
from multihead.lens import observe, register_transformers, registered
from tests.lens.families import CASES, FAMILIES, with_attention
from tests.lens.hosts import bert, flat, ids, llama, nothing_patched, padded, same

NAMES = ["BERT", "Llama", "Mistral", "Gemma 2", "gpt-oss", "T5", "BART", "LLaVA", "ViT"]


@pytest.fixture(autouse=True)
def _registered():
    register_transformers()


def computed(model, inputs, implementation):
    """The output at real tokens, and the gradient of every parameter."""
    model = with_attention(model, implementation)
    output = flat(model(**inputs))[0]
    mask = inputs.get("attention_mask")
    if mask is not None and output.shape[:2] == mask.shape:
        output = output * mask[..., None]
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=output.dtype)
    (output * weights).sum().backward()
    return [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def apart(model, inputs):
    """The largest difference from eager, relative to the largest number of each tensor; inf for a lost gradient."""
    ours, theirs = (computed(model, inputs, name) for name in ("multihead", "eager"))
    if len(ours) != len(theirs):
        return torch.inf
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_eager(name, case):
    family = FAMILIES[name]
    if case != "whole" and not (family.text and (family.left or case == "right")):
        pytest.skip("it takes no such padding")
    assert apart(family.make(), CASES[case](family.inputs())) < 2e-5


@pytest.mark.parametrize(("name", "lost"), [("Gemma 2", "softcap"), ("gpt-oss", "s_aux"), ("T5", "position_bias")])
def test_the_comparison_can_fail(name, lost, monkeypatch):
    def without(*args, **kwargs):
        kwargs.pop(lost)
        return registered.attention_forward(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "multihead", without)
    family = FAMILIES[name]
    assert apart(family.make(), family.inputs()) > 1e-3


def test_a_lost_mask_would_be_noticed(monkeypatch):
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "multihead", lambda *args, **kwargs: None)
    assert apart(llama(), {"input_ids": ids(2, 7), "attention_mask": padded(7, 5, left=True)}) > 1e-3


def test_dropout_drops():
    model = with_attention(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5), "multihead")
    inputs = {"input_ids": ids(2, 7)}
    kept = model(**inputs).last_hidden_state
    dropped = model.train()(**inputs).last_hidden_state
    assert not torch.allclose(kept, dropped)
    assert torch.equal(kept, model.eval()(**inputs).last_hidden_state)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "gpt-oss"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_that_of_eager(name, cache):
    model = FAMILIES[name].make()
    inputs = {"input_ids": ids(2, 7), "attention_mask": padded(7, 5, left=True), "pad_token_id": 0}
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": {"static": "static"}.get(cache)}
    options["disable_compile"] = True
    eager = with_attention(model, "eager").generate(**inputs, **options)
    model = with_attention(model, "multihead")
    with observe(model) as seen:
        assert torch.equal(model.generate(**inputs, **options), eager)
    assert seen.check().passed
    assert len(seen.runs) == 6
    assert nothing_patched()


def test_a_prompt_in_parts_and_a_static_cache():
    """Neither queries after a cache nor a cache that is not full yet move the causal mask."""
    model = with_attention(llama(), "multihead")
    tokens = ids(2, 11)
    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        first = model(input_ids=tokens[:, :4], use_cache=True)
        rest = model(input_ids=tokens[:, 4:], past_key_values=first.past_key_values).logits
        cache = StaticCache(config=model.config, max_cache_len=17)
        static = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    assert torch.allclose(torch.cat([first.logits, rest], 1), whole, atol=1e-5)
    assert torch.allclose(static, whole, atol=1e-5)


def test_autocast_and_other_precisions():
    model = llama()
    inputs = {"input_ids": ids(2, 7), "attention_mask": padded(7, 5, left=True)}
    with torch.no_grad():
        exact = with_attention(model, "eager")(**inputs).logits[0]
        own = with_attention(model, "multihead")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(own(**inputs).logits[0].float(), exact, atol=0.02)
        assert torch.allclose(own.to(torch.bfloat16)(**inputs).logits[0].float(), exact, atol=0.02)
        assert torch.allclose(own.double()(**inputs).logits[0].float(), exact, atol=0.02)


def test_a_mask_of_numbers_is_added():
    model, tokens = llama(), ids(1, 5)
    mask = torch.randn(1, 1, 5, 5)
    assert apart(model, {"input_ids": tokens, "attention_mask": mask}) < 2e-5


def attend_with(mask=None, **others):
    q = torch.randn(1, 2, 3, 4)
    return registered.attention_forward(torch.nn.Identity(), q, q, q, mask, **others)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"cache": object(), "is_causal": True}, "it reads a paged cache; generate without continuous batching"),
        ({"indices": torch.zeros(1, 3, 2)}, 'it chooses keys by sparse indices; use "eager"'),
        ({"block_indices": torch.zeros(1, 3, 2)}, "sparse indices"),
        ({"sinks": torch.zeros(1, 2, 3, 1)}, "its sinks differ from query to query"),
        ({"mask": {"valid": None}}, "its mask is a dict, not a tensor"),
        ({}, "it got no mask, and Identity has no is_causal that would say what that means"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_what_cannot_be_expressed_is_refused(others, reason):
    with pytest.raises(NoKernelError, match=f'attn_implementation="multihead" does not compute this.*{reason}'):
        attend_with(**others)


def test_a_query_that_sees_nothing_gets_nothing():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    mask[:, :, 0] = False
    output, weights = attend_with(mask)
    assert weights is None
    assert output.shape == (1, 3, 2, 4)
    assert output[:, 0].count_nonzero() == 0
    assert output[:, 1:].count_nonzero() == output[:, 1:].numel()


def test_registering_is_asked_for_and_may_be_repeated():
    program = (
        "import multihead.lens, transformers.modeling_utils as m\n"
        "assert 'multihead' not in m.AttentionInterface._global_mapping\n"
        "multihead.lens.register_transformers()\n"
        "multihead.lens.register_transformers()\n"
        "assert m.AttentionInterface._global_mapping['multihead'].__module__ == 'multihead.lens.registered'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'register_transformers needs transformers: pip install "multihead\[hf\]"'):
        register_transformers()


def test_observing_changes_nothing():
    model = with_attention(FAMILIES["gpt-oss"].make(), "multihead")
    inputs = {"input_ids": ids(2, 7)}
    with torch.no_grad():
        plain = model(**inputs)
        with observe(model) as seen:
            assert same(model(**inputs), plain)
    assert seen.check().passed
    layer = seen.layers[0]
    assert layer.sinks.shape == (6,)
    assert layer.mask is not None
