"""Attention that a module writes out as matrix products: nothing to see, but never missed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multihead.errors import UnsupportedAttentionError
from multihead.lens import SkippedAttentionWarning, observe
from tests.lens.hosts import nothing_patched, observed, same


class Pooled(nn.Module):
    """Attention of one tensor with itself, in a module that also has a softmax and is called so."""

    def forward(self, q):
        return F.scaled_dot_product_attention(q, q, q).softmax(-1)


class TalkingAttention(nn.Module):
    """Attention written out, as where heads are mixed before and after the softmax."""

    def __init__(self, softmax):
        super().__init__()
        self.softmax = softmax

    def forward(self, q):
        return self.softmax(q @ q.transpose(-2, -1)) @ q


@pytest.mark.parametrize(
    "softmax",
    [lambda s: F.softmax(s, -1), lambda s: s.softmax(-1), lambda s: torch.softmax(s, -1), nn.Softmax(-1)],
)
def test_attention_written_out_is_not_missed(softmax):
    """Nobody can say which of its products are weights; but that there is one, its name and its softmax tell."""
    model, q = nn.Sequential(TalkingAttention(softmax), Pooled()), torch.randn(2, 3, 7, 5)
    with (
        pytest.raises(
            UnsupportedAttentionError, match=r"layer 0 \(0\) cannot.*TalkingAttention multiplies its weights in code of"
        ),
        observe(model),
    ):
        model(q)
    plain = model(q)
    with pytest.warns(SkippedAttentionWarning), observe(model, unsupported="skip") as seen:
        assert same(model(q), plain)
    assert [layer.name for layer in seen.layers] == ["1"]
    assert nothing_patched()


def test_a_softmax_beside_attention_is_no_trouble():
    class PooledAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Pooled()

        def forward(self, q):
            return self.inner(q).softmax(-1)

    observed(PooledAttention(), torch.randn(2, 3, 7, 5))


def test_where_timm_has_the_fused_path_switched_off():
    model = nn.Sequential(TalkingAttention(nn.Softmax(-1)))
    model[0].fused_attn = False
    with (
        pytest.raises(
            UnsupportedAttentionError, match=r"its fused_attn is off: call timm.layers.set_fused_attn\(True, e"
        ),
        observe(model),
    ):
        model(torch.randn(2, 3, 7, 5))
