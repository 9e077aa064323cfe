"""Documents packed in one row: each as if it were alone, and nothing as large as all pairs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from multihead import masks
from multihead.core import AttentionCall
from multihead.kernels import attend, choose, explain, packed
from tests.accuracy import random_call
from tests.kernels.test_output import compare

IDS = torch.tensor([[4, 4, 4, 7, 7, 7, 7, 1, 1, 1, 2], [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3]])


def packed_call(ids=IDS, causal=True, **options) -> AttentionCall:
    mask = masks.documents(ids)
    return random_call(
        queries=ids.shape[1], keys=ids.shape[1], mask=masks.causal() & mask if causal else mask, **options
    )


def test_equals_the_formula_with_every_gradient():
    for causal in (False, True):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            call = packed_call(causal=causal, dtype=dtype, requires_grad=True)
            assert choose(call) is packed
            compare(packed, call)
    compare(packed, packed_call(IDS[:1], requires_grad=True))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=7), st.sampled_from([1, 2, 3, 6]), st.booleans())
def test_each_document_is_as_if_it_were_alone(lengths, kv_heads, causal):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    call = packed_call(ids[None], causal=causal, dtype=torch.float64, kv_heads=kv_heads)
    assert choose(call) is packed
    found, start = attend(call), 0
    for length in lengths:
        place = slice(start, start + length)
        alone = AttentionCall(
            *(tensor[:, :, place] for tensor in (call.q, call.k, call.v)), mask=masks.causal() if causal else None
        )
        torch.testing.assert_close(found[:, :, place], attend(alone), atol=1e-12, rtol=1e-12)
        start += length


def test_a_document_of_nan_is_its_own_affair():
    call = packed_call(requires_grad=True)
    clean = attend(call)
    with torch.no_grad():
        for tensor in (call.q, call.k, call.v):
            tensor[0, :, 3:7] = torch.nan
    found = attend(call)
    others = IDS != 7
    torch.testing.assert_close(found.transpose(1, 2)[others], clean.transpose(1, 2)[others])
    assert found.transpose(1, 2)[~others].isnan().all()


def test_other_masks_and_options_are_refused_with_the_reason():
    assert "documents packed" in packed.refuses(random_call(mask=masks.causal()))
    assert "documents packed" in packed.refuses(
        random_call(mask=masks.documents(torch.zeros(7, dtype=torch.int64), torch.zeros(11, dtype=torch.int64)))
    )
    assert "several places" in packed.refuses(packed_call(torch.tensor([[0, 1, 0]])))
    assert "a bias" in packed.refuses(packed_call(bias=True))
    assert "softcap" in packed.refuses(packed_call(softcap=2.0))
    assert explain(packed_call())["packed"] == "runs"


def test_memory_is_linear(monkeypatch):
    """Eight documents of 4,096 tokens: a mask of all pairs would have 2³⁰ elements."""
    ids = torch.arange(8).repeat_interleave(4096)[None]
    made = []
    original = masks.Documents.visible
    monkeypatch.setattr(masks.Documents, "visible", lambda *given: made.append(given) or original(*given))
    call = packed_call(ids, batch=1, heads=1, kv_heads=1, dim=4, value_dim=4)
    assert choose(call) is packed
    attend(call)
    assert not made
