"""Statistics of a user's own: on each kernel, through each door, and given in the wrong way."""

from dataclasses import replace

import pytest
import torch

import multihead as mh
from multihead import ColumnStatistic, MassOn, RowStatistic, Statistics, masks
from multihead.core import AttentionCall, Measurements, reference
from multihead.kernels import chunked, cpu, explain_measuring, measure, tiles
from multihead.kernels.native import request as requests
from tests.accuracy import OPTIONS, SIZES, check, mask_examples, plain, random_call
from tests.lens.hosts import stack


class SecondMoment(RowStatistic):
    """Σ P² of each query."""

    name = "second_moment"

    def of(self, tile):
        return tile.weights.square().sum(-1)


class ByEven(ColumnStatistic):
    """What queries of even numbers give to each key."""

    name = "by_even"

    def of(self, tile):
        return tile.weights[:, :, tile.queries % 2 == 0].sum(2)


class FirstOfEach(ColumnStatistic):
    """P² summed for the first head and the first sequence only: a tile says which ones it holds."""

    name = "first_of_each"

    def of(self, tile):
        batch = torch.arange(tile.batch.start, tile.batch.stop) == 0
        heads = torch.arange(tile.heads.start, tile.heads.stop) == 0
        return tile.weights.square().sum(2) * (batch[:, None] & heads)[..., None]


MARKS = torch.arange(SIZES["keys"]) % 3 == 1
WEIGHED = torch.linspace(-1, 2, SIZES["batch"] * SIZES["keys"]).view(SIZES["batch"], -1)
OWN = (SecondMoment(), ByEven(), FirstOfEach(), MassOn("marks", MARKS), MassOn("weighed", WEIGHED))


@pytest.fixture(params=["cpu", "cpu, tiny parts", "chunked, tiny tiles", "chunked, one tile"])
def kernel(request, monkeypatch):
    """Both kernels that measure, with everything in one piece and in many."""
    if "tiny tiles" in request.param:
        monkeypatch.setattr(tiles, "TILE_SCORES", 13)
    if "tiny parts" in request.param:
        monkeypatch.setattr(requests, "SHOWN", 400)
        monkeypatch.setattr(requests, "TILE", 400)
    return cpu if "cpu" in request.param else chunked


def expected(call: AttentionCall, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The same from all weights at once."""
    found = (reference(call) if dtype == torch.float64 else plain(call)).weights
    first = torch.zeros(SIZES["batch"], SIZES["heads"], SIZES["keys"], dtype=dtype)
    first[0, 0] = found[0, 0].square().sum(0)
    return {
        "row_statistics.second_moment": found.square().sum(-1),
        "column_statistics.by_even": found[:, :, ::2].sum(2),
        "column_statistics.first_of_each": first,
        "row_statistics.marks": found[..., MARKS].sum(-1),
        "row_statistics.weighed": (found * WEIGHED.to(dtype)[:, None, None]).sum(-1),
    }


def agree(found: Measurements, call: AttentionCall) -> None:
    exact, simple = expected(call), expected(call, torch.float32)
    assert set(found.named()) == set(exact)
    for name, value in found.named().items():
        assert value.dtype == torch.float32
        check(value, exact[name], simple[name], name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_every_weight_is_shown_once(mask, options, kernel):
    call = random_call(mask=mask, **options)
    output, found = kernel.measure(call, Statistics.only(own=OWN), output=True)
    agree(found, call)
    check(output, reference(call).output, plain(call).output, "output")


def test_beside_all_others(kernel):
    """Jobs may hold part of a row of blocks only because fewer weights are shown at a time."""
    call = random_call(mask=masks.causal(), bias=True)
    every = Statistics.every(top=4, block=3, rows=(5, 0), columns=(10, 3, 4))
    _, alone = kernel.measure(call, every)
    _, beside = kernel.measure(call, replace(every, own=OWN))
    for name, value in alone.named().items():
        torch.testing.assert_close(beside.named()[name], value, rtol=1e-6, atol=1e-6)
    agree(Measurements(row_statistics=beside.row_statistics, column_statistics=beside.column_statistics), call)


@pytest.mark.parametrize("queries", [[6, 1, 4], [2]], ids=str)
def test_chosen_queries(queries, kernel):
    call = random_call(mask=masks.causal())
    queries = torch.tensor(queries)
    _, found = kernel.measure(call, Statistics.only(own=OWN), queries=queries)
    exact = reference(call).weights[:, :, queries]
    check(found.row_statistics["second_moment"], exact.square().sum(-1), exact.float().square().sum(-1))
    even = exact[:, :, queries % 2 == 0].sum(2)
    check(found.column_statistics["by_even"], even, even.float())


def test_a_hidden_nan_is_not_shown():
    call = random_call(mask=masks.causal())
    k = call.k.clone()
    k[:, :, -1] = torch.nan
    _, found = measure(replace(call, k=k), Statistics.only(own=OWN))
    exact = reference(replace(call, k=k)).weights
    check(found.row_statistics["second_moment"][:, :, :-1], *[exact[:, :, :-1].square().sum(-1)] * 2)


def test_double_precision():
    call = random_call(torch.float64)
    assert explain_measuring(call)["chunked"] == "runs"
    _, found = measure(call, Statistics.only(own=OWN))
    for name, value in found.named().items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected(call)[name])


class TestThroughEachDoor:
    def test_inspect(self):
        call = random_call()
        _, seen = mh.inspect(call.q, call.k, call.v, statistics=Statistics.only(own=OWN))
        agree(seen, call)

    def test_the_layer_and_a_recording(self, tmp_path):
        model, x = stack(2), torch.randn(2, 9, 14)
        own = (SecondMoment(), ByEven(), MassOn("marks", torch.arange(9) % 2))
        with mh.observe(model, statistics=Statistics(own=own)) as seen:
            model(x)
        recording = seen.recording(tokens=[["a"] * 9] * 2)
        recording.save(tmp_path / "run.safetensors")
        loaded = mh.load(tmp_path / "run.safetensors")
        for layer, stored in zip(recording.layers, loaded.layers, strict=True):
            rows = torch.stack([recording.rows(layer.index, range(9), item=item) for item in range(2)])
            torch.testing.assert_close(layer.statistics.row_statistics["marks"], rows[..., 1::2].sum(-1))
            torch.testing.assert_close(layer.statistics.column_statistics["by_even"], rows[:, :, ::2].sum(2))
            assert layer.axes("row_statistics.marks") == ("batch", "head", "query")
            assert set(stored.statistics.row_statistics) == {"second_moment", "marks"}
            for name, value in layer.statistics.named().items():
                assert torch.equal(stored.statistics.named()[name], value)

    def test_a_batch_is_split(self):
        model, x = stack(1), torch.randn(2, 9, 14)
        with mh.observe(model, statistics=Statistics(own=(SecondMoment(), ByEven()))) as seen:
            model(x)
        every = seen.layers[0].statistics
        one = seen.recording(tokens=[["a"] * 9] * 2).sequence(1).layers[0].statistics
        assert torch.equal(one.row_statistics["second_moment"], every.row_statistics["second_moment"][1:])
        assert torch.equal(one.column_statistics["by_even"], every.column_statistics["by_even"][1:])


class Wrong(RowStatistic):
    """Says what it is given."""

    name = "wrong"

    def __init__(self, said):
        self.said = said

    def of(self, tile):
        return self.said


class Unnamed(RowStatistic):
    """Has no name."""

    def of(self, tile):
        return tile.weights.sum(-1)


class TestBadInput:
    @pytest.mark.parametrize(
        ("own", "message"),
        [
            ((Unnamed(),), r"Unnamed has the name None, expected a word like 'punctuation'"),
            ((MassOn("a b", MARKS),), r"MassOn has the name 'a b', expected a word"),
            ((MassOn("a", MARKS), MassOn("a", MARKS)), "own holds two row statistics named 'a': rename one"),
        ],
    )
    def test_names(self, own, message):
        with pytest.raises(ValueError, match=message):
            Statistics(own=own)

    def test_the_same_name_for_a_row_and_a_column(self):
        class Other(ByEven):
            name = "marks"

        call = random_call()
        _, found = measure(call, Statistics(own=(MassOn("marks", MARKS), Other())))
        assert found.row_statistics["marks"].shape[2] == SIZES["queries"]
        assert found.column_statistics["marks"].shape[2] == SIZES["keys"]

    @pytest.mark.parametrize(
        ("said", "error", "message"),
        [
            (3.0, TypeError, "wrong said a float of a tile, expected a tensor of shape"),
            (torch.zeros(()), ValueError, r"wrong said a tensor of shape \(\) of a tile, expected \("),
        ],
    )
    def test_what_a_statistic_says(self, said, error, message, kernel):
        with pytest.raises(error, match=message):
            kernel.measure(random_call(), Statistics(own=(Wrong(said),)))

    def test_keys_of_another_attention(self):
        with pytest.raises(ValueError, match=r"marks has keys of shape \(5,\), but this attention has 11 keys"):
            measure(random_call(), Statistics(own=(MassOn("marks", MARKS[:5]),)))
        with pytest.raises(ValueError, match=r"keys has shape \(1, 1, 11\), expected \(keys,\) or \(batch, keys\)"):
            MassOn("marks", MARKS[None, None])
        model, asked = stack(1), Statistics(own=(MassOn("marks", MARKS[:5]),))
        message = r"layer 0 \(0\): marks has keys of shape \(5,\)"
        with pytest.raises(ValueError, match=message), mh.observe(model, statistics=asked):
            model(torch.randn(2, 9, 14))
