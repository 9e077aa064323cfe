"""Every statistic against its definition on the float64 weights."""

import itertools
from dataclasses import replace

import pytest
import torch

from multihead import masks
from multihead.core import AXES, Measurements, Statistics, reference
from multihead.kernels import chunked, cpu, measure, tiles
from multihead.kernels.collectors import largest
from multihead.kernels.native import request as requests
from tests.accuracy import OPTIONS, check, mask_examples, random_call
from tests.kernels.definitions import EVERYTHING, check_measured, definitions


@pytest.fixture(params=["cpu", "cpu, tiny parts", "chunked, tiny tiles", "chunked, one tile"])
def kernel(request, monkeypatch):
    """Each kernel that measures, with everything in one piece and in many."""
    if "tiny tiles" in request.param:
        monkeypatch.setattr(tiles, "TILE_SCORES", 13)
    if "tiny parts" in request.param:
        monkeypatch.setattr(requests, "TILE", 40)
        monkeypatch.setattr(requests, "LAUNCH_FLOPS", 1)
    return cpu if "cpu" in request.param else chunked


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_every_statistic(mask, options, kernel):
    call = random_call(mask=mask, **options)
    assert kernel.refuses(call) is None
    output, found = kernel.measure(call, EVERYTHING, output=True)
    assert set(found.named()) == set(AXES)
    check_measured(call, EVERYTHING, output, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types(dtype, kernel):
    call = random_call(dtype, mask=mask_examples()["causal padding"], bias=True)
    if kernel is cpu and dtype == torch.float64:
        assert "float32" in cpu.refuses(call)
        return
    _, found = kernel.measure(call, EVERYTHING)
    exact, simple = definitions(call, EVERYTHING), definitions(call, EVERYTHING, found.lse.dtype)
    assert found.entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name in ("lse", "entropy", "received", "rows", "blocks", "block_peaks", "offsets"):
        check(getattr(found, name), exact[name], simple[name], name)


def test_nothing_that_was_not_asked_for():
    _, found = measure(random_call(), Statistics.only())
    assert found == Measurements()
    assert found.named() == {}


@pytest.mark.parametrize("mask", ["causal", "causal padding", "padding", "dense per head", "tree"])
@pytest.mark.parametrize("queries", [[1, 4, 6], [6, 1, 4]], ids=str)
def test_chosen_queries_are_a_cut_of_the_whole(queries, mask, kernel):
    call = random_call(mask=mask_examples()[mask], sinks=True, bias=True)
    queries = torch.tensor(queries)
    statistics = replace(EVERYTHING, rows=(6, 1))
    output, found = kernel.measure(call, statistics, queries=queries, output=True)
    every, whole = kernel.measure(call, replace(EVERYTHING, rows=tuple(range(7))), output=True)
    torch.testing.assert_close(output, every[:, :, queries])
    for name in ("lse", "entropy", "visible", "top_weights", "columns", "sink"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name)[:, :, queries])
    torch.testing.assert_close(found.rows, whole.rows[:, :, [6, 1]])
    torch.testing.assert_close(found.received, whole.rows[:, :, queries].sum(2))
    with pytest.raises(ValueError, match=r"rows \[5\] are not among the measured queries"):
        kernel.measure(call, replace(EVERYTHING, rows=(5,)), queries=queries)


def test_output_is_the_attention(kernel):
    call = random_call(mask=mask_examples()["tree"])
    output, _ = kernel.measure(call, Statistics(), output=True)
    check(output, reference(call).output, reference(call, torch.float32).output)


@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (3, 5), (7, 2), (5, 50)], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal padding", "tree", "nothing"])
def test_block_peaks_are_the_largest_of_the_very_weights(mask, blocks, kernel):
    call = random_call(mask=mask_examples()[mask], **OPTIONS["all"])
    asked = Statistics.only(blocks=blocks, block_peaks=True, rows=tuple(range(7)))
    _, found = kernel.measure(call, asked)
    expected = torch.zeros_like(found.block_peaks)
    for (row, key), weights in zip(
        itertools.product(range(7), range(11)), found.rows.flatten(2).unbind(-1), strict=True
    ):
        cell = expected[:, :, row // blocks[0], key // blocks[1]]
        torch.maximum(cell, weights, out=cell)
    assert torch.equal(found.block_peaks, expected)
    assert found.block_peaks.shape == found.blocks.shape
    assert found.block_peaks.dtype == found.blocks.dtype


def test_one_strong_link_shows_in_the_peak_and_not_in_the_mean(kernel):
    call = random_call(batch=1, heads=2, kv_heads=1, queries=150, keys=150, dim=16, scale=1e-3)
    bias = torch.zeros(150, 150)
    bias[70, 140] = 20.0
    _, found = kernel.measure(replace(call, bias=bias), Statistics.only(blocks=(64, 64), block_peaks=True))
    assert found.block_peaks.shape == (1, 2, 3, 3)
    assert (found.block_peaks[:, :, 1, 2] > 0.99).all()
    assert (found.blocks < 0.01).all()
    others = found.block_peaks.flatten(2)[..., [0, 1, 2, 3, 4, 6, 7, 8]]
    assert (others < 0.01).all()
    assert (others > 0.006).all()


def test_block_peaks_count_chosen_queries_off_in_their_order(kernel):
    call = random_call(mask=masks.causal(), bias=True)
    asked = Statistics.only(blocks=(2, 4), block_peaks=True)
    _, found = kernel.measure(call, asked, queries=torch.tensor([6, 1, 4]))
    weights = reference(call).weights[:, :, [6, 1, 4]]
    down = (weights[:, :, :2].amax(2), weights[:, :, 2])
    exact = torch.stack([torch.stack([row[..., at : at + 4].amax(-1) for at in (0, 4, 8)], -1) for row in down], 2)
    check(found.block_peaks, exact, exact.float())


def test_a_visible_nan_is_a_peak(kernel):
    call = random_call(mask=masks.causal())
    k = call.k.clone()
    k[:, :, 9] = torch.nan
    _, found = kernel.measure(replace(call, k=k), Statistics.only(blocks=(3, 3), block_peaks=True))
    # the causal mask shows key 9 to the queries from 5 on, all of whose weights are then NaN
    assert not found.block_peaks[:, :, 0].isnan().any()
    assert found.block_peaks[:, :, 1:].isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda found, _: found.blocks,
        lambda found, _: found.block_peaks.roll(1, -1),
        lambda found, _: found.block_peaks.roll(1, -2),
        lambda found, _: found.block_peaks.roll(1, 1),
        lambda found, without_a_key: without_a_key.block_peaks,
    ],
    ids=["means", "shifted across", "shifted down", "another head's", "one key lost"],
)
def test_the_bar_rejects_wrong_block_peaks(wrong, kernel):
    call = random_call(mask=masks.causal())
    output, found = kernel.measure(call, EVERYTHING, output=True)
    check_measured(call, EVERYTHING, output, found)
    lost = masks.causal() & masks.padding(torch.arange(11).expand(2, 11) != 4)
    _, without_a_key = kernel.measure(replace(call, mask=lost), EVERYTHING)
    with pytest.raises(AssertionError, match="block_peaks: error"):
        check_measured(call, EVERYTHING, output, replace(found, block_peaks=wrong(found, without_a_key)))


def test_top_has_no_more_than_there_are_keys():
    _, found = measure(random_call(), Statistics(top=50))
    assert found.top_weights.shape == (2, 6, 7, 11)


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(
        9, 1
    )
    values, indices = largest(scores, 2)
    assert indices.tolist() == [[1, 2], [0, 1], [0, 1]] * 9
    assert values.tolist() == [[3.0, 3.0], [0.0, 0.0], [5.0, 4.0]] * 9


def test_no_tile_is_larger_than_promised(monkeypatch):
    """The peak of one tile's scores, counted where tiles are made; a Lq × Lk tensor would be 16 times as large."""
    monkeypatch.setattr(tiles, "TILE_SCORES", 1 << 14)
    seen = []
    original = tiles.capped_scores

    def counting(call, part):
        scores = original(call, part)
        seen.append(scores.numel())
        return scores

    monkeypatch.setattr(tiles, "capped_scores", counting)
    call = random_call(batch=1, heads=2, kv_heads=1, queries=512, keys=512)
    chunked.measure(call, Statistics.every())
    assert max(seen) <= 1 << 14
    assert sum(seen) == 2 * 512 * 512


def test_causal_tiles_skip_the_future():
    call = random_call(batch=1, heads=1, kv_heads=1, queries=64, keys=64, mask=mask_examples()["causal"])
    chosen = torch.arange(64)
    cells = sum(len(part.queries) * (part.keys.stop - part.keys.start) for part in _small_parts(call, chosen))
    assert cells < 0.6 * 64 * 64


def _small_parts(call, queries):
    original, tiles.TILE_SCORES = tiles.TILE_SCORES, 256
    try:
        yield from tiles.parts(call, queries)
    finally:
        tiles.TILE_SCORES = original


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"keys": 0}, {"batch": 0}, {"dim": 0}], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "prefix model"])
def test_nothing_to_measure_is_an_answer(sizes, mask):
    call = random_call(mask=mask_examples()[mask], **sizes)
    statistics = replace(EVERYTHING, rows=(), columns=())
    _, found = measure(call, statistics)
    assert set(found.named()) == set(AXES)
    assert not any(value.isnan().any() for value in found.named().values() if value.is_floating_point())
    if call.sizes.keys == 0:
        assert (found.lse == -torch.inf).all()
