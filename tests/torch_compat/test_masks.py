"""torch's masks as mask and bias: only what a mask does is passed on, as the faster kernels want it."""

import pytest
import torch

from multihead.masks import Causal, Sizes
from multihead.torch_compat.masks import mask_and_bias
from tests.torch_compat.pairs import H, L, N, S, some_seen

SIZES = Sizes(N, H, L, S)
HIDDEN = some_seen(L, S, seed=3)
PADDING = some_seen(N, S, seed=4)
NUMBERS = torch.randn(L, S, generator=torch.Generator().manual_seed(5))


def read(key_padding_mask=None, attn_mask=None, *, is_causal=False, batched=True, extras=0, look=True):
    """What is visible and what is added, as tensors of all heads; None where there is neither."""
    options = {"is_causal": is_causal, "batched": batched, "extras": extras, "look": look}
    mask, bias = mask_and_bias(key_padding_mask, attn_mask, sizes=SIZES, **options)
    shape = (N, H, L, extras + S)
    visible = None if mask is None else mask.dense(*shape[2:], batch=N, heads=H).expand(shape)
    return visible, None if bias is None else bias.expand(shape)


def as_numbers(mask):
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


def test_none():
    assert read() == (None, None)


@pytest.mark.parametrize("turned", [lambda mask: mask, as_numbers], ids=["boolean", "0 and -inf"])
@pytest.mark.parametrize("extras", [0, 2])
def test_what_only_hides_is_no_bias(turned, extras):
    heads = some_seen(N * H, L, S, seed=6)
    for masks, expected in (
        ({"key_padding_mask": PADDING}, ~PADDING[:, None, None]),
        ({"attn_mask": HIDDEN}, ~HIDDEN),
        ({"attn_mask": heads}, ~heads.view(N, H, L, S)),
        ({"key_padding_mask": PADDING, "attn_mask": HIDDEN}, ~(PADDING[:, None, None] | HIDDEN)),
    ):
        visible, bias = read(**{name: turned(mask) for name, mask in masks.items()}, extras=extras)
        assert bias is None
        assert torch.equal(visible[..., extras:], expected.expand(N, H, L, S))
        assert visible[..., :extras].all()


@pytest.mark.parametrize("extras", [0, 2])
def test_what_only_adds_is_no_mask(extras):
    padding = torch.randn(N, S)
    for masks, expected in (
        ({"key_padding_mask": padding}, padding[:, None, None]),
        ({"attn_mask": NUMBERS}, NUMBERS),
        ({"key_padding_mask": padding, "attn_mask": NUMBERS}, padding[:, None, None] + NUMBERS),
    ):
        visible, bias = read(**masks, extras=extras)
        assert visible is None
        assert torch.equal(bias[..., extras:], expected.expand(N, H, L, S))
        assert not bias[..., :extras].any()


def test_what_does_both_is_both():
    visible, bias = read(attn_mask=NUMBERS.masked_fill(HIDDEN, -torch.inf))
    assert torch.equal(visible, ~HIDDEN.expand(N, H, L, S))
    assert torch.equal(bias, NUMBERS.masked_fill(HIDDEN, 0.0).expand(N, H, L, S))
    visible, bias = read(key_padding_mask=as_numbers(PADDING), attn_mask=NUMBERS)
    assert torch.equal(visible, ~PADDING[:, None, None].expand(N, H, L, S))
    assert torch.equal(bias, NUMBERS.expand(N, H, L, S))


def test_a_mask_that_learns_stays_a_bias():
    learned = as_numbers(HIDDEN).requires_grad_()
    visible, bias = read(attn_mask=learned)
    assert torch.equal(visible, ~HIDDEN.expand(N, H, L, S))
    assert bias.requires_grad


@pytest.mark.parametrize("mask", [as_numbers(HIDDEN), NUMBERS], ids=["only hides", "only adds"])
def test_nothing_is_looked_at_in_a_trace(mask):
    """Then a mask may do both, whatever its numbers."""
    visible, bias = read(attn_mask=mask, look=False)
    assert torch.equal(visible, mask.isfinite().expand(N, H, L, S))
    assert torch.equal(bias, mask.masked_fill(mask.isneginf(), 0.0).expand(N, H, L, S))


def test_causal_ends_with_the_keys_and_lets_the_extra_ones_be_seen():
    mask, _ = mask_and_bias(None, None, is_causal=True, sizes=SIZES, batched=True, extras=0, look=True)
    assert isinstance(mask, Causal)
    for queries, keys in ((L, S), (S, L)):
        options = {"is_causal": True, "sizes": Sizes(N, H, queries, keys), "batched": True, "extras": 2, "look": True}
        visible = mask_and_bias(None, None, **options)[0].dense(queries, keys + 2)
        assert visible[:, :2].all()
        assert torch.equal(visible[:, 2:], torch.ones(queries, keys).tril(keys - queries).bool())
    assert torch.equal(read(attn_mask=HIDDEN, is_causal=True)[0], read(attn_mask=HIDDEN)[0])
