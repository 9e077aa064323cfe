"""Every statistic against its definition on the float64 weights."""

from dataclasses import replace

import pytest
import torch

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
    for name in ("lse", "entropy", "received", "rows", "blocks", "offsets"):
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
