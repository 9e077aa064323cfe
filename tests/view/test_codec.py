import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.core import Statistics
from multihead.errors import RecordingError
from multihead.view.codec import SAMPLE, Truth, encode, encode_all, planes
from tests.view.made import layer_of, made_call, true_weights


def decoded_integers(coded):
    """(bytes, H, D, L) to (H, D, L), by the contract's words: zigzag coded, lowest byte first."""
    values = np.zeros(coded.shape[1:], dtype=np.int64)
    for byte, plane in enumerate(coded):
        values += plane.astype(np.int64) * 256**byte
    return np.where(values % 2 == 1, -(values + 1) // 2, values // 2)


def decoded_weights(encoded, visible, softcap=None):
    a = decoded_integers(encoded.q) << encoded.q_shift[:, None].astype(np.int64)
    b = decoded_integers(encoded.k) << encoded.k_shift[:, None].astype(np.int64)
    scores = np.einsum("hd,hdq,hdk->hqk", encoded.steps, a, b)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if encoded.bias is not None:
        scores = scores + encoded.bias
    blind = encoded.lse == -np.inf
    weights = np.exp(scores - np.where(blind, 0.0, encoded.lse)[..., None])
    return np.where(visible & ~blind[..., None], weights, 0.0)


def error_of(call, encoded, *, item=0, heads=None, queries=None):
    """The largest difference between decoded weights and those of the formula in float64."""
    true = true_weights(call, item=item, heads=heads, queries=queries)
    visible = np.ones_like(true, dtype=bool)
    if call.mask is not None:
        seen = call.mask.visible(torch.arange(call.sizes.queries), torch.arange(call.sizes.keys), call.sizes)
        seen = seen.expand(call.sizes.batch, call.sizes.heads, call.sizes.queries, call.sizes.keys)[item]
        seen = seen if heads is None else seen[list(heads)]
        visible = (seen if queries is None else seen[:, list(queries)]).numpy()
    return np.abs(decoded_weights(encoded, visible, call.softcap) - true).max(initial=0.0)


RANDOM = torch.Generator().manual_seed(7)
HIDDEN = torch.rand(3, 11, 13, generator=RANDOM) > 0.5
SINKS = torch.tensor([0.5, -1.0, 4.0])
BLIND = masks.causal() & ~masks.prefix(5)
SMALLEST = torch.finfo(torch.float32).min
CALLS = {
    "plain": {},
    "sharp": {"spread": 3.0},
    "grouped keys": {"heads": 6, "kv_heads": 2},
    "one scale": {"scale": 0.7},
    "no scale": {"scale": 0.0},
    "softcap": {"softcap": 2.0, "spread": 2.0},
    "causal": {"mask": masks.causal()},
    "window": {"mask": masks.sliding_window(left=2, right=3)},
    "rows that see nothing": {"mask": BLIND},
    "a mask of each head's own": {"mask": masks.dense(HIDDEN)},
    "bias": {"bias": torch.randn(1, 3, 11, 13, generator=RANDOM)},
    "bias in float64": {"bias": torch.randn(11, 13, generator=RANDOM).double() / 3},
    "bias that hides": {"bias": torch.zeros(11, 13).masked_fill(HIDDEN[0], -torch.inf)},
    "bias that hides by the smallest number": {"bias": torch.zeros(11, 13).masked_fill(HIDDEN[0], SMALLEST)},
    "sinks": {"sinks": SINKS},
    "sinks and rows that see nothing": {"sinks": SINKS, "mask": BLIND},
    "everything": {
        "sinks": SINKS,
        "mask": masks.causal() | masks.prefix(2),
        "softcap": 3.0,
        "spread": 2.0,
        "bias": torch.randn(1, 3, 1, 13, generator=RANDOM),
    },
    "fewer tokens than dimensions": {"queries": 2, "keys": 3, "dim": 17},
    "one key": {"keys": 1},
    "one query": {"queries": 1},
    "one dimension": {"dim": 1},
    "half precision": {"dtype": torch.float16},
    "brain floats": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
    "large scores": {"spread": 40.0},
    "tiny numbers": {"spread": 1e-18},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_weight_is_within_the_bound(name):
    call = made_call(**CALLS[name])
    encoded = encode(layer_of(call))
    assert encoded.accuracy <= 1e-5
    # the float64 formula, the encoder's own arithmetic and this reader's may differ in their last digits
    assert error_of(call, encoded) <= encoded.accuracy + 1e-9
    assert encoded.rows == call.sizes.queries


@pytest.mark.parametrize("accuracy", [1e-2, 1e-4, 1e-7])
def test_the_bound_may_be_chosen_and_finer_costs_more(accuracy):
    call = made_call(heads=2, queries=31, keys=37, dim=7)
    encoded = encode(layer_of(call), accuracy=accuracy)
    error = error_of(call, encoded)
    assert accuracy / 30 < error <= accuracy
    largest = int(np.abs(decoded_integers(encoded.k)).max())
    finer = encode(layer_of(call), accuracy=accuracy / 16)
    assert int(np.abs(decoded_integers(finer.k)).max()) > 4 * largest


def test_the_reported_accuracy_is_the_measured_one():
    call = made_call(queries=29, keys=29, mask=masks.causal())
    encoded = encode(layer_of(call))
    assert encoded.accuracy == pytest.approx(error_of(call, encoded), rel=1e-3)


def test_a_reader_that_forgets_something_fails_the_comparison():
    call = made_call(queries=11, keys=13, mask=masks.causal(), spread=2.0)
    encoded = encode(layer_of(call))
    true, visible = true_weights(call), call.mask.dense(11, 13).numpy()[None]
    fits = decoded_weights(encoded, visible)
    assert np.abs(fits - true).max() < 1e-5
    assert np.abs(decoded_weights(encoded, np.ones_like(visible)) - true).max() > 1e-2
    assert np.abs(fits[[1, 0, 2]] - true).max() > 1e-2
    steps = encoded.steps.copy()
    steps *= 1.01
    object.__setattr__(encoded, "steps", steps)
    assert np.abs(decoded_weights(encoded, visible) - true).max() > 1e-4


def test_chosen_heads_queries_and_sequence():
    valid = torch.ones(2, 13, dtype=torch.bool)
    valid[1, 9:] = False
    call = made_call(
        batch=2, heads=6, kv_heads=3, mask=masks.padding(valid) & masks.causal(), bias=torch.randn(2, 6, 11, 13)
    )
    heads, queries = (1, 4, 5), (2, 3, 7)
    encoded = encode(layer_of(call, heads=heads, queries=queries), item=1)
    assert encoded.q.shape[1] == 3
    assert encoded.q.shape[3] == 3
    assert error_of(call, encoded, item=1, heads=heads, queries=queries) <= 1e-5
    assert error_of(call, encoded, item=0, heads=heads, queries=queries) > 1e-3


def test_degenerate_heads():
    call = made_call(heads=5, queries=11, keys=13, dim=7)
    call.q[0, 0] = 0  # every row uniform
    call.k[0, 1] = 0
    call.q[0, 2, :, 3:] = 0  # rank deficient
    call.k[0, 3] = call.k[0, 3, :1]  # all keys alike
    call.q[0, 4, :, 0] = call.q[0, 4, :, 1] * 1e4
    encoded = encode(layer_of(call))
    assert error_of(call, encoded) <= 1e-5
    assert np.isfinite(encoded.steps).all()
    assert not decoded_integers(encoded.q)[0].any(), "a head whose weights are all equal needs no bits"


def test_no_queries_and_no_keys():
    nothing = encode(layer_of(made_call(queries=0), statistics=Statistics(lse=True, max_score=False)))
    assert nothing.q.shape[3] == 0
    blind = encode(layer_of(made_call(keys=0)))
    assert blind.k.shape[3] == 0
    assert (blind.lse == -np.inf).all()


def test_hidden_nan_and_inf_do_not_leak():
    call = made_call(mask=masks.prefix(9))
    call.k[0, :, 9] = torch.nan
    call.k[0, :, 10] = torch.inf
    encoded = encode(layer_of(call))
    clean = made_call(mask=masks.prefix(9))
    assert error_of(clean, encoded) <= 1e-5


def test_a_row_hidden_whole_by_the_smallest_number_keeps_its_digits():
    bias = torch.zeros(11, 13)
    bias[4] = SMALLEST
    encoded = encode(layer_of(made_call(bias=bias)))
    assert encoded.accuracy <= 1e-5
    everything = np.ones((3, 11, 13), dtype=bool)
    np.testing.assert_allclose(decoded_weights(encoded, everything), true_weights(made_call()), atol=1e-5)


def test_visible_nan_is_refused():
    call = made_call()
    call.k[0, 1, 4] = torch.nan
    with pytest.raises(ValueError, match="layer 3: NaN or inf in q or k reaches the weights"):
        encode(layer_of(call, index=3))


def test_without_max_score_the_bound_holds_too():
    call = made_call(queries=97, keys=97, spread=2.0)
    encoded = encode(layer_of(call, statistics=Statistics(max_score=False)))
    assert error_of(call, encoded) <= 1e-5


def test_long_inputs_are_compared_in_a_sample_of_rows():
    call = made_call(heads=2, queries=1009, keys=1009, dim=7, mask=masks.causal())
    encoded = encode(layer_of(call), budget=0)
    assert 64 < encoded.rows <= SAMPLE
    assert encoded.accuracy <= 1e-5
    # the rest is no guarantee, but the riskiest rows are in the sample
    assert error_of(call, encoded) <= 3e-5
    assert encode(layer_of(call)).rows == 1009


def test_what_the_recorded_numbers_do_not_allow_is_said():
    call = made_call(heads=2, queries=521, keys=521, dim=7, bias=torch.full((1, 1, 521, 521), 5e4))
    layer = layer_of(call)
    encoded = encode(layer, budget=0, accuracy=1e-6)
    assert encoded.accuracy > 1e-6, "a float32 lse of 5e4 has steps of 4e-3"
    assert encoded.q.shape[0] <= 3, "and no bits are wasted on it"


@pytest.mark.parametrize("accuracy", [0.0, -1.0, 1.0, math.nan])
def test_accuracy_is_checked(accuracy):
    with pytest.raises(ValueError, match="is no number between 0 and 1"):
        encode(layer_of(made_call()), accuracy=accuracy)


def test_what_is_missing_is_named():
    layer = layer_of(made_call(), statistics=Statistics(lse=False))
    with pytest.raises(RecordingError, match="layer 0 holds no log-sum-exp"):
        Truth(layer)
    bare = layer_of(made_call())
    object.__setattr__(bare, "q", None)
    with pytest.raises(RecordingError, match="layer 0 holds no queries and keys"):
        Truth(bare)


def test_broad_queries_and_keys_that_nobody_looks_at_take_fewer_bits():
    call = made_call(heads=2, queries=101, keys=103, dim=7, spread=3.0)
    encoded = encode(layer_of(call))
    truth = true_weights(call)
    moved = truth * (1 - truth)
    assert encoded.q_shift.max() > 2
    assert encoded.k_shift.max() > 2
    for shift, risk in ((encoded.q_shift, moved.max(2)), (encoded.k_shift, moved.max(1))):
        for head in range(2):
            assert np.corrcoef(shift[head], np.log(risk[head]))[0, 1] < -0.8
    assert np.abs(decoded_weights(encoded, np.ones_like(truth, dtype=bool)) - truth).max() <= 1e-5
    object.__setattr__(encoded, "k_shift", np.roll(encoded.k_shift, 1, axis=1))
    with np.errstate(over="ignore"):
        assert np.abs(decoded_weights(encoded, np.ones_like(truth, dtype=bool)) - truth).max() > 1e-3


def test_planes():
    coded = planes(torch.tensor([[[0, -1], [1, -128], [127, 300]]]))
    assert coded.shape == (2, 1, 2, 3)
    assert coded[:, 0, 0].tolist() == [[0, 2, 254], [0, 0, 0]]
    assert coded[:, 0, 1].tolist() == [[1, 255, 88], [0, 0, 2]]
    assert decoded_integers(coded).tolist() == [[[0, 1, 127], [-1, -128, 300]]]
    large = torch.tensor([[[2**30], [-(2**30)]]])
    assert decoded_integers(planes(large)).tolist() == large.mT.tolist()


def test_bits_per_value_of_gaussian_heads():
    call = made_call(heads=2, queries=257, keys=257, dim=31)
    encoded = encode(layer_of(call))
    spreads = np.concatenate([decoded_integers(side).std(axis=-1).ravel() for side in (encoded.q, encoded.k)])
    bits = np.log2(spreads.clip(0.3) * math.sqrt(2 * math.pi * math.e)).mean()
    assert bits < 16


def test_all_layers_come_in_order_and_torch_keeps_its_threads():
    calls = [made_call(seed=seed, queries=5 + seed, keys=13) for seed in range(7)]
    threads = torch.get_num_threads()
    found = list(encode_all([layer_of(call, index=index) for index, call in enumerate(calls)]))
    assert [encoded.q.shape[3] for encoded in found] == [5, 6, 7, 8, 9, 10, 11]
    assert max(error_of(call, encoded) for call, encoded in zip(calls, found, strict=True)) <= 1e-5
    broken = layer_of(made_call(), statistics=Statistics(lse=False))
    with pytest.raises(RecordingError, match="holds no log-sum-exp"):
        list(encode_all([broken, layer_of(calls[0])]))
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads, "threads started later, too"
