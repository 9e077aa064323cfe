import random
from dataclasses import replace

import pytest
import torch

from multihead import masks
from multihead.core import AttentionCall, Measurements, Statistics, reference
from multihead.errors import RecordingError
from multihead.kernels import measure
from multihead.recording import Recording, maps, whole
from multihead.recording import pieces as room
from multihead.recording.maps import LayerMap, map_block
from tests.accuracy import OPTIONS, check, mask_examples, random_call
from tests.view.made import layer_of, made_call

POOLINGS = ("mean", "max")


@pytest.fixture(autouse=True)
def one_thread():
    """The pieces are so small here that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["pieces as they are", "small pieces"])
def pieces(request, monkeypatch):
    """Also with pieces so small that every tile has many, ragged ones among them."""
    if request.param == "small pieces":
        monkeypatch.setattr(room, "HEIGHT", 32)
        monkeypatch.setattr(room, "WIDTH", 64)


def pooled(weights, level, pooling):
    """(queries, keys) to cells: means over the pairs that there are, or the largest."""
    side = 1 << level
    there = torch.ones_like(weights)
    whole, count = (
        torch.nn.functional.pad(tensor, (0, -tensor.shape[1] % side, 0, -tensor.shape[0] % side))
        .unflatten(1, (-1, side))
        .unflatten(0, (-1, side))
        for tensor in (weights, there)
    )
    return whole.amax((1, 3)) if pooling == "max" else whole.sum((1, 3)) / count.sum((1, 3))


def same(found, weights, plain, level, y, x, pooling):
    """Assert that a tile is what the formula says."""
    pairs = tuple(slice(place << (8 + level), (place + 1) << (8 + level)) for place in (y, x))
    exact, simple = (pooled(tensor[pairs], level, pooling) for tensor in (weights, plain))
    assert found.dtype == torch.float32
    check(found, exact, simple, f"level {level} tile ({y}, {x}) {pooling}")


def check_all(layer, weights, plain, *, item=0, tiles=3):
    """Some tiles of every level, those at the far edges always, both poolings, two heads."""
    draw = random.Random(0)
    heads = draw.sample(range(len(layer.heads)), min(2, len(layer.heads)))
    found = LayerMap(layer, item)
    for level in range(found.levels):
        tall, wide = (-(-length // 256) for length in found.shape(level))
        places = [(y, x) for y in range(tall) for x in range(wide)]
        chosen = {places[-1], *draw.sample(places, min(tiles, len(places)))}
        for (y, x), pooling in ((place, pooling) for place in sorted(chosen) for pooling in POOLINGS):
            for place in heads:
                same(
                    found.tile(layer.heads[place], level, y, x, pooling),
                    weights[place],
                    plain[place],
                    level,
                    y,
                    x,
                    pooling,
                )


def both(call, item=0, heads=slice(None), queries=slice(None)):
    """The weights in float64, and in float32 for calibration."""
    exact, plain = reference(call).weights, reference(call, torch.float32).weights
    return (weights[item][heads][:, queries] for weights in (exact, plain))


QUERIES, KEYS = 149, 307


@pytest.mark.parametrize("name", mask_examples())
def test_every_mask(name, pieces):
    call = random_call(queries=QUERIES, keys=KEYS, mask=mask_examples(QUERIES, KEYS)[name])
    check_all(layer_of(call), *both(call, 1), item=1, tiles=1)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("mask", [None, masks.causal(), ~masks.sliding_window(5)], ids=["all", "causal", "far"])
def test_every_option(option, mask, pieces):
    call = random_call(queries=QUERIES, keys=KEYS, mask=mask, **OPTIONS[option])
    check_all(layer_of(call), *both(call, 1), item=1, tiles=1)


def test_pieces_of_the_real_size():
    call = made_call(heads=2, kv_heads=1, queries=1201, keys=2311, dim=7, mask=masks.causal())
    check_all(layer_of(call), *both(call))


@pytest.mark.parametrize("mask", [None, masks.causal(), ~masks.causal()], ids=["all", "causal", "not causal"])
def test_some_heads_and_some_queries(mask, pieces):
    order = [*range(0, 280, 3), 5, 1, 7]
    call = random_call(queries=281, keys=307, mask=mask, bias=True)
    layer = layer_of(call, heads=[1, 4, 5], queries=order)
    check_all(layer, *both(call, 1, [1, 4, 5], order), item=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    call = random_call(dtype, queries=QUERIES, keys=KEYS)
    check_all(layer_of(call), *both(call))


def test_a_bias_that_repeats(pieces):
    for shape in ((1, 1, QUERIES, 1), (2, 1, 1, KEYS), (1, 6, 1, 1)):
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        call = random_call(queries=QUERIES, keys=KEYS, bias=bias)
        check_all(layer_of(call), *both(call, 1), item=1, tiles=1)


def test_numbers_that_nobody_sees_do_not_leak():
    call = random_call(queries=QUERIES, keys=KEYS, mask=masks.prefix(200))
    spoilt = call.k.clone()
    spoilt[:, :, 200:] = torch.nan
    spoilt[:, :, 250:] = torch.inf
    layer = layer_of(replace(call, k=spoilt))
    check_all(layer, *both(call))


def test_rows_that_see_nothing_are_zero():
    call = random_call(queries=QUERIES, keys=KEYS, mask=masks.prefix(0))
    found = LayerMap(layer_of(call))
    assert all(found.tile(0, level, 0, 0, pooling).eq(0).all() for level in (0, 1) for pooling in POOLINGS)


def test_given_weights():
    call = made_call(heads=3, queries=270, keys=270)
    exact, plain = both(call)
    recording = Recording.from_weights([plain[None]], [str(place) for place in range(270)])
    check_all(recording.layers[0], exact, plain)


def test_a_wrong_map_is_noticed():
    call = made_call(heads=2, queries=QUERIES, keys=KEYS)
    exact, plain = both(call)
    found = LayerMap(layer_of(call))

    def tile(head=0, pooling="max", level=1):
        return found.tile(head, level, 0, 0, pooling)

    same(tile(), exact[0], plain[0], 1, 0, 0, "max")
    for wrong in (tile(head=1), tile(pooling="mean"), tile().roll(1, 0), tile().roll(1, 1)):
        with pytest.raises(AssertionError, match="error"):
            same(wrong, exact[0], plain[0], 1, 0, 0, "max")
    with pytest.raises(AssertionError, match="error"):
        same(tile(pooling="mean").mul(1.001), exact[0], plain[0], 1, 0, 0, "mean")


def with_blocks(call, side, *, names=("blocks", "block_peaks"), **changes):
    """A layer that has block maps, and nothing to recompute weights from unless ``changes`` say otherwise."""
    asked = Statistics.only(blocks=side if isinstance(side, tuple) else (side, side), block_peaks=True)
    found = measure(call, asked)[1].named()
    kept = {name: found[name] for name in (*names, "block_size")}
    changes = {"q": None, "k": None, **changes}
    layer = layer_of(call, statistics=Statistics())
    statistics = Measurements(**({"lse": layer.statistics.lse} if changes.get("q") is not None else {}), **kept)
    return replace(layer, statistics=statistics, **changes)


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, masks.causal()], ids=["all", "causal"])
def test_coarse_levels_from_recorded_blocks(side, mask):
    call = random_call(queries=601, keys=571, mask=mask)
    found = LayerMap(with_blocks(call, side), 1)
    exact, plain = both(call, 1)
    first = side.bit_length() - 1
    assert found.finest("mean") == found.finest("max") == first
    for level in range(first, found.levels):
        last = tuple((length - 1) // 256 for length in found.shape(level))
        for y, x in {(0, 0), last}:
            for pooling in POOLINGS:
                same(found.tile(4, level, y, x, pooling), exact[4], plain[4], level, y, x, pooling)
    if first:
        with pytest.raises(
            RecordingError, match=rf"layer 0 holds no queries.*begins at level {first}, .* than level 0"
        ):
            found.tile(4, 0, 0, 0, "max")


def test_recorded_blocks_are_what_is_shown():
    call = random_call(queries=601, keys=571)
    layer = with_blocks(call, 2, q=call.q, k=call.k, kv_heads=layer_of(call).kv_heads)
    layer.statistics.blocks.fill_(0.25)
    layer.statistics.block_peaks.fill_(0.5)
    found = LayerMap(layer)
    assert found.tile(0, 2, 0, 0, "mean").eq(0.25).all()
    assert found.tile(0, 2, 0, 0, "max").eq(0.5).all()
    assert found.tile(0, 0, 0, 0, "max").ne(0.5).any()


def test_blocks_that_no_map_is_made_of():
    call = random_call(queries=601, keys=571)
    for side in ((2, 4), 3, 1024):
        found = LayerMap(with_blocks(call, side))
        assert found.finest("mean") is None
        with pytest.raises(RecordingError, match="no block map of the mean: observe with qk=True"):
            found.tile(0, 2, 0, 0, "mean")
    found = LayerMap(with_blocks(call, 2, names=("blocks",)))
    assert (found.finest("mean"), found.finest("max")) == (1, None)
    # some of the queries: blocks are of recorded rows, but which those were recorded with is not known
    some = replace(with_blocks(call, 2), sizes=replace(call.sizes, queries=700), queries=tuple(range(601)))
    assert LayerMap(some).finest("mean") is None


def test_a_costly_tile_measures_the_whole_head_once(monkeypatch):
    monkeypatch.setattr(maps, "COSTLY", 200 * 200)
    monkeypatch.setattr(maps, "BLOCKS", 100)
    call = made_call(heads=2, queries=601, keys=571, mask=masks.causal())
    exact, plain = both(call)
    found = LayerMap(layer_of(call))
    monkeypatch.setattr(whole, "BAND", 200)
    bands, pauses = [], []
    measured = whole.measure
    monkeypatch.setattr(
        whole, "measure", lambda *given, queries: bands.append(queries) or measured(*given, queries=queries)
    )
    assert found.lacks_blocks(1, 3 - 1, 0, 0, "max") is False, "level 2 is finer than the blocks"
    monkeypatch.setattr(maps, "BLOCKS", 200)
    assert found.lacks_blocks(1, 2, 0, 0, "max")
    for pooling in POOLINGS:
        tile = found.tile(1, 2, 0, 0, pooling, pause=lambda: pauses.append(len(bands)))
        same(tile, exact[1], plain[1], 2, 0, 0, pooling)
    assert [len(band) for band in bands] == [200, 200, 200, 1]
    assert torch.cat(bands).equal(torch.arange(601))
    assert pauses[:4] == [0, 1, 2, 3]
    assert not found.lacks_blocks(1, 2, 0, 0, "max")
    assert found.lacks_blocks(0, 2, 0, 0, "max")


def test_measured_maps_are_bounded(monkeypatch):
    monkeypatch.setattr(maps, "BLOCKS", 100)
    call = made_call(heads=3, queries=300, keys=300)
    found = LayerMap(layer_of(call))
    one = 2 * 4 * 75 * 75
    monkeypatch.setattr(maps, "MEASURED_BYTES", 2 * one)
    for head in (0, 1, 2):
        found.measure(head)
    assert found._measured_bytes() == 2 * one
    assert list(found._measured) == [1, 2]


def test_work_can_be_ended_between_pieces(monkeypatch):
    monkeypatch.setattr(room, "HEIGHT", 32)
    call = made_call(queries=300, keys=300)
    left = [3]

    class EndedError(Exception):
        pass

    def pause():
        left[0] -= 1
        if not left[0]:
            raise EndedError

    with pytest.raises(EndedError):
        LayerMap(layer_of(call)).tile(0, 1, 0, 0, "mean", pause=pause)


def test_nothing_of_all_pairs_is_formed():
    # 17 GB, if it were
    tokens = 65_536
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, tokens, 4, generator=draw) for _ in range(2))
    layer = layer_of(AttentionCall(q, k, k[..., :0], masks.sliding_window(100)), statistics=Statistics.only(lse=True))
    top = LayerMap(layer).tile(0, 8, 0, 0, "mean")
    assert top.shape == (256, 256)
    # rows sum to 1, and a cell is 256 × 256 of them
    torch.testing.assert_close(top.sum(1), torch.full((256,), 1 / 256))
    assert not top.triu(1).any()
    assert not top.tril(-2).any()


@pytest.mark.parametrize(
    ("queries", "keys", "levels"),
    [(1, 1, 1), (256, 256, 1), (257, 3, 2), (5, 512, 2), (513, 513, 3), (1024, 1025, 4), (131_072, 131_072, 10)],
)
def test_levels(queries, keys, levels):
    q, k = torch.zeros(1, 1, queries, 1), torch.zeros(1, 1, keys, 1)
    layer = layer_of(AttentionCall(q[:, :, :1], k[:, :, :1], k[:, :, :1, :0]))
    sizes = replace(layer.sizes, queries=queries, keys=keys)
    found = LayerMap(replace(layer, sizes=sizes, q=q, k=k, statistics=Measurements()))
    assert found.levels == levels
    assert max(found.shape(levels - 1)) <= 256
    assert levels == 1 or max(found.shape(levels - 2)) > 256


def test_one_token():
    call = made_call(queries=1, keys=1)
    found = LayerMap(layer_of(call))
    assert found.tile(2, 0, 0, 0, "mean").tolist() == [[1.0]]
    assert found.cell(2, 0, 0, 0, "max") == 1.0


@pytest.mark.parametrize("pooling", POOLINGS)
def test_cells(pooling):
    call = made_call(queries=QUERIES, keys=KEYS)
    found = LayerMap(layer_of(call))
    tile = found.tile(1, 1, 0, 0, pooling)
    for row, column in ((0, 0), (74, 153), (3, 90)):
        assert found.cell(1, 1, row, column, pooling) == pytest.approx(tile[row, column].item(), abs=1e-6)


@pytest.mark.parametrize(("tokens", "side"), [(1, None), (4096, None), (4097, 4), (8192, 4), (8193, 8), (10**6, 512)])
def test_the_side_of_blocks(tokens, side):
    assert map_block(tokens, 1) == map_block(1, tokens) == side
    assert side is None or -(-tokens // side) <= 2048 < -(-tokens // (side // 2))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((9, 0, 0, 0, "mean"), "head 9 of layer 0 was not recorded: its heads are 0 to 2"),
        ((0, 2, 0, 0, "mean"), "there is no level 2: the map has levels 0 and 1"),
        ((0, -1, 0, 0, "mean"), "there is no level -1"),
        ((0, 0, 1, 0, "mean"), r"there is no tile \(1, 0\) at level 0: it has 1 × 2 tiles"),
        ((0, 0, 0, -1, "mean"), r"there is no tile \(0, -1\)"),
    ],
)
def test_what_is_not_there(asked, words):
    with pytest.raises(RecordingError, match=words):
        LayerMap(layer_of(made_call(queries=QUERIES, keys=KEYS))).tile(*asked)


def test_other_mistakes():
    layer = layer_of(made_call(queries=QUERIES, keys=KEYS))
    with pytest.raises(RecordingError, match="there is no sequence 1"):
        LayerMap(layer, 1)
    with pytest.raises(RecordingError, match=r"there is no cell \(75, 0\) at level 1: it has 75 × 154"):
        LayerMap(layer).cell(0, 1, 75, 0, "mean")
    bare = replace(layer, q=None, k=None)
    with pytest.raises(RecordingError, match="no block map of the max: observe with qk=True"):
        LayerMap(bare).tile(0, 0, 0, 0, "max")
