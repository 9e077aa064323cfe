"""The programs that run on the GPU. Importing this file imports Triton: only ``measure`` does, when it is called.

One program owns what it writes: the first pass a tile of queries, the second a tile of keys. Nothing is added up by
two programs at once, so the same call gives the same bits every time.

Names, the same everywhere: ``places`` count the measured queries, ``rows`` are their numbers among all queries,
``keys`` are numbers of keys; ``ours`` are the places of this part. ``near`` is what is inside the call, ``visible``
what a query may see. Tensors come with their strides behind them; what is not there is None, and its code is not
compiled.

Source: Milakov & Gimelshein 2018; Dao et al. 2022, algorithms 1 and 4; core/online.py has the same arithmetic in torch.
"""

# the shape checks under pytest would stand between Triton and the source that it compiles
from typing import no_type_check

import triton
import triton.language as tl

from multihead.kernels.gpu.scores import limit, scored, vectors, weighted


@triton.jit
@no_type_check
def _insert(best, best_keys, scores, peak, keys):
    """The largest scores of each row, those of one more tile included; a tie goes to the lower key.

    The slots are in no order. Tiles come in order of their keys, so what is there already wins a tie.
    """
    left, least = scores, tl.min(best, 1)
    while tl.max(tl.where(peak > least, 1, 0), 0) > 0:
        key = tl.min(tl.where(left == peak[:, None], keys[None, :], 2147483647), 1)
        # of equal slots the one with the highest key makes room; empty slots have different keys below 0
        weakest = best == least[:, None]
        room = tl.max(tl.where(weakest, best_keys, -2147483647), 1)
        taken = weakest & (best_keys == room[:, None]) & (peak > least)[:, None]
        best = tl.where(taken, peak[:, None], best)
        best_keys = tl.where(taken, key[:, None], best_keys)
        left = tl.where(keys[None, :] == key[:, None], -float("inf"), left)
        peak, least = tl.max(left, 1), tl.min(best, 1)
    return best, best_keys


@triton.jit(do_not_specialize=["place_first", "place_stop", "key_first", "key_stop", "tile_first", "tiles", "queries"])
@no_type_check
def first_pass(  # noqa: C901, PLR0912, PLR0915  what is left out when it is compiled is a branch here
    q, q_strides, k, k_strides, v, v_strides, numbers, limits, spans, mask, bias, sinks, shift, inverse,
    lse, peak, entropy, sink, visible_keys, top_scores, top_keys, output,
    place_first, place_stop, key_first, key_stop, tile_first, tiles, queries,
    heads, group, dim, value_dim, scale, softcap,
    MASK_BY_PLACE: tl.constexpr, BIAS_BY_PLACE: tl.constexpr, CAREFUL: tl.constexpr, WIDE: tl.constexpr,
    TOP: tl.constexpr, SLOTS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """What is known of a query when all its keys have gone by: one program for each tile of QUERIES queries.

    ``shift`` and ``inverse`` are what makes a weight of a score, exp(s - shift) · inverse; lse is their sum in
    logarithms, and would cost the weights a few bits.
    """
    number = tl.program_id(0)
    # the last queries see most where a mask is causal: they begin first
    tile = tile_first + tiles - 1 - number % tiles
    pair = number // tiles
    batch, head = pair // heads, pair % heads
    places = tile * QUERIES + tl.arange(0, QUERIES)
    ours = (places >= place_first) & (places < place_stop)
    rows = tl.load(numbers + places, mask=ours, other=0)
    base = batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    q_tile = vectors(q, base, rows, ours, DIM, q_strides[2], q_strides[3], dim)
    k_base = batch.to(tl.int64) * k_strides[0] + (head // group).to(tl.int64) * k_strides[1]
    low, high = limit(limits, batch, head, tile, key_first, key_stop)

    nothing = tl.zeros((QUERIES,), tl.float32)
    highest = nothing - float("inf")
    total, moment = nothing, nothing
    seen = tl.zeros((QUERIES,), tl.int32)
    if TOP > 0:
        slots = tl.arange(0, SLOTS)[None, :] + tl.zeros((QUERIES, SLOTS), tl.int32)
        best = tl.where(slots < TOP, -float("inf"), float("inf"))
        best_keys = -1 - slots
    if output is not None:
        v_base = batch.to(tl.int64) * v_strides[0] + (head // group).to(tl.int64) * v_strides[1]
        values = tl.zeros((QUERIES, VALUE_DIM), tl.float32)
        if CAREFUL:
            above, below = values, values

    for start in range(low, high, KEYS):
        keys = start + tl.arange(0, KEYS)
        near = ours[:, None] & (keys < high)[None, :]
        k_tile = vectors(k, k_base, keys, keys < high, DIM, k_strides[2], k_strides[3], dim)
        scores, visible = scored(
            q_tile, k_tile, batch, head, rows, places, ours, keys, near, spans, mask, bias, scale, softcap,
            MASK_BY_PLACE, BIAS_BY_PLACE, WIDE,
        )  # fmt: skip
        tile_peak = tl.max(scores, 1)
        now = tl.maximum(highest, tile_peak)
        floor = tl.where(now == -float("inf"), 0.0, now)
        step = highest - floor
        faded = tl.exp(step)
        shifted = scores - floor[:, None]
        grown = tl.exp(shifted)
        if entropy is not None:
            moment = moment * faded + total * tl.where(faded == 0.0, 0.0, step) * faded
            moment += tl.sum(tl.where(grown == 0.0, 0.0, shifted) * grown, 1)
        total = total * faded + tl.sum(grown, 1)
        highest = now
        if visible_keys is not None:
            seen += tl.sum(visible.to(tl.int32), 1)
        if TOP > 0:
            # NaN is larger than nothing, and would be looked for without end
            ordered = tl.where(scores >= -float("inf"), scores, -float("inf"))
            best, best_keys = _insert(best, best_keys, ordered, tl.max(ordered, 1), keys)
        if output is not None:
            v_tile = vectors(v, v_base, keys, keys < high, VALUE_DIM, v_strides[2], v_strides[3], value_dim)
            if CAREFUL:
                # a value that is no number must reach those who see it, and only those; NaN counts as both infinities
                wide = v_tile.to(tl.float32)
                may = visible.to(tl.float32)
                above += tl.dot(may, tl.where(wide < float("inf"), 0.0, 1.0), input_precision="ieee")
                below += tl.dot(may, tl.where(wide > -float("inf"), 0.0, 1.0), input_precision="ieee")
                v_tile = tl.where(tl.abs(wide) < float("inf"), wide, 0.0).to(v_tile.dtype)
            values = values * faded[:, None] + weighted(grown, v_tile, WIDE)

    answers = pair.to(tl.int64) * queries + places
    if peak is not None:
        tl.store(peak + answers, highest, mask=ours)
    floor = tl.where(highest == -float("inf"), 0.0, highest)
    if sinks is not None:
        extra = tl.load(sinks[0] + head.to(tl.int64) * sinks[1]).to(tl.float32)
        now = tl.maximum(highest, extra)
        ceiling = tl.where(now == -float("inf"), 0.0, now)
        step = highest - ceiling
        faded = tl.exp(step)
        moment = moment * faded + total * tl.where(faded == 0.0, 0.0, step) * faded
        share = tl.exp(extra - ceiling)
        moment += tl.where(share == 0.0, 0.0, extra - ceiling) * share
        total = total * faded + share
        if output is not None:
            values = values * faded[:, None]
        floor = ceiling
    empty = total == 0.0
    upside = 1.0 / tl.where(empty, 1.0, total)
    upside = tl.where(empty, 0.0, upside)
    logarithm = tl.log(tl.where(empty, 1.0, total))
    tl.store(shift + answers, floor, mask=ours)
    tl.store(inverse + answers, upside, mask=ours)
    if lse is not None:
        tl.store(lse + answers, tl.where(empty, -float("inf"), floor + logarithm), mask=ours)
    if entropy is not None:
        # below 0 only by rounding; NaN stays
        found = logarithm - moment * upside
        tl.store(entropy + answers, tl.where(found < 0.0, 0.0, found), mask=ours)
    if sink is not None:
        tl.store(sink + answers, share * upside, mask=ours)
    if visible_keys is not None:
        tl.store(visible_keys + answers, seen, mask=ours)
    if TOP > 0:
        where = answers[:, None] * TOP + slots
        tl.store(top_scores + where, best, mask=ours[:, None] & (slots < TOP))
        tl.store(top_keys + where, best_keys, mask=ours[:, None] & (slots < TOP))
    if output is not None:
        values = values * upside[:, None]
        if CAREFUL:
            values = tl.where(above > 0.0, float("inf"), values)
            values = tl.where(below > 0.0, -float("inf"), values)
            values = tl.where((above > 0.0) & (below > 0.0), float("nan"), values)
        dims = tl.arange(0, VALUE_DIM)
        where = answers[:, None] * value_dim + dims[None, :]
        tl.store(output + where, values, mask=ours[:, None] & (dims < value_dim)[None, :])


@triton.jit
@no_type_check
def _mass(mass, weights, rows, keys, ours, offset, edges, bins, near_key, far_key, BINS: tl.constexpr):
    """The mass of a tile by distance, added to that of the tiles before."""
    positions = (rows + offset).to(tl.int32)
    distance = positions[:, None] - keys[None, :]
    shortest = tl.min(tl.where(ours, positions, 1073741823), 0) - far_key
    longest = tl.max(tl.where(ours, positions, -1073741823), 0) - near_key
    numbers = tl.arange(0, BINS)
    starts = tl.load(edges + numbers, mask=numbers <= bins, other=2147483647)
    # most tiles lie in one bin, or across two
    first = tl.maximum(tl.sum((starts <= shortest).to(tl.int32), 0) - 1, 0)
    stop = tl.minimum(tl.sum((starts <= longest).to(tl.int32), 0), bins)
    for number in range(first, stop):
        inside = (distance >= tl.load(edges + number)) & (distance < tl.load(edges + number + 1))
        part = tl.sum(tl.sum(tl.where(inside, weights, 0.0), 1), 0)
        mass = tl.where(numbers == number, mass + part.to(tl.float64), mass)
    return mass


@triton.jit(
    do_not_specialize=["place_first", "place_stop", "key_first", "key_stop", "tile_first", "tile_stop", "queries"]
)
@no_type_check
def second_pass(  # noqa: C901, PLR0915  what is left out when it is compiled is a branch here
    q, q_strides, k, k_strides, numbers, limits, spans, mask, bias, shift, inverse,
    received, seers, edges, mass, blocks, block_peaks,
    place_first, place_stop, key_first, key_stop, tile_first, tile_stop, key_tiles, queries, all_keys, offset, bins,
    heads, group, dim, scale, softcap,
    down, down_step, down_tiles, down_blocks, height, down_count,
    across, across_step, across_tiles, across_blocks, width, across_count,
    MASK_BY_PLACE: tl.constexpr, BIAS_BY_PLACE: tl.constexpr, WIDE: tl.constexpr, BINS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """What is known of keys when all queries have gone by: one program for each tile of at most KEYS keys.

    Tiles follow the blocks of the overview map: ``across`` keys are ``across_tiles`` tiles of ``across_step`` keys or
    fewer, and hold ``across_blocks`` blocks of ``width`` keys; the same for ``down`` and the queries. Answers are added
    to what an earlier part of the queries has left there.
    """
    program = tl.program_id(0)
    tile, pair = program % key_tiles, program // key_tiles
    batch, head = pair // heads, pair % heads
    begin = tile // across_tiles * across + tile % across_tiles * across_step
    end = tl.minimum(tl.minimum(begin + across_step, (tile // across_tiles + 1) * across), all_keys)
    keys = begin + tl.arange(0, KEYS)
    inside = (keys < end) & (keys >= key_first) & (keys < key_stop)
    base = batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    k_base = batch.to(tl.int64) * k_strides[0] + (head // group).to(tl.int64) * k_strides[1]
    k_tile = vectors(k, k_base, keys, inside, DIM, k_strides[2], k_strides[3], dim)
    low, high = limit(limits, batch, head, tile, tile_first, tile_stop)

    taken = tl.zeros((KEYS,), tl.float64)
    block = tl.zeros((KEYS,), tl.float64)
    highest = tl.zeros((KEYS,), tl.float32)
    askers = tl.zeros((KEYS,), tl.int32)
    by_distance = tl.zeros((BINS,), tl.float64)
    for number in range(low, high):
        start = number // down_tiles * down + number % down_tiles * down_step
        stop = tl.minimum(tl.minimum(start + down_step, (number // down_tiles + 1) * down), place_stop)
        places = start + tl.arange(0, QUERIES)
        ours = (places >= place_first) & (places < stop)
        rows = tl.load(numbers + places, mask=ours, other=0)
        q_tile = vectors(q, base, rows, ours, DIM, q_strides[2], q_strides[3], dim)
        near = ours[:, None] & inside[None, :]
        scores, visible = scored(
            q_tile, k_tile, batch, head, rows, places, ours, keys, near, spans, mask, bias, scale, softcap,
            MASK_BY_PLACE, BIAS_BY_PLACE, WIDE,
        )  # fmt: skip
        known = pair.to(tl.int64) * queries + places
        floor = tl.load(shift + known, mask=ours, other=0.0)
        upside = tl.load(inverse + known, mask=ours, other=0.0)
        weights = tl.where(visible, tl.exp(scores - floor[:, None]) * upside[:, None], 0.0)
        if received is not None:
            taken += tl.sum(weights, 0).to(tl.float64)
            askers += tl.sum(visible.to(tl.int32), 0)
        if mass is not None:
            by_distance = _mass(
                by_distance, weights, rows, keys, ours, offset, edges, bins, begin, end - 1, BINS
            )  # fmt: skip
        if blocks is not None:
            if (number % down_tiles == 0) | (number == low):
                block = tl.zeros((KEYS,), tl.float64)
                highest = tl.zeros((KEYS,), tl.float32)
            whole = (number % down_tiles == down_tiles - 1) | (number == high - 1)
            columns = tl.arange(0, KEYS)
            places_across = tile * across_blocks + columns
            for place in range(tl.minimum(down_blocks, tl.cdiv(stop - start, height))):
                mine = (places - start) // height == place
                gathered = block + tl.sum(tl.where(mine[:, None], weights, 0.0), 0).to(tl.float64)
                if down_tiles > 1:
                    block = gathered
                of_column = (keys - begin)[:, None] // width == columns[None, :]
                cells = tl.sum(tl.where(of_column, gathered[:, None], 0.0), 0)
                row = number // down_tiles * down_blocks + place
                wanted = whole & (columns < across_blocks) & (places_across < across_count) & (row < down_count)
                where = (pair.to(tl.int64) * down_count + row) * across_count + places_across
                total = tl.load(blocks + where, mask=wanted, other=0.0) + cells.to(tl.float32)
                tl.store(blocks + where, total, mask=wanted)
                if block_peaks is not None:
                    raised = tl.maximum(highest, tl.max(tl.where(mine[:, None], weights, 0.0), 0))
                    if down_tiles > 1:
                        highest = raised
                    peaks = tl.max(tl.where(of_column, raised[:, None], 0.0), 0)
                    peaks = tl.maximum(peaks, tl.load(block_peaks + where, mask=wanted, other=0.0))
                    # a maximum may lose a NaN, a sum does not
                    tl.store(block_peaks + where, tl.where(total == total, peaks, total), mask=wanted)  # noqa: PLR0124

    if received is not None:
        where = pair.to(tl.int64) * all_keys + keys
        tl.store(received + where, tl.load(received + where, mask=inside, other=0.0) + taken, mask=inside)
        tl.store(seers + where, tl.load(seers + where, mask=inside, other=0) + askers, mask=inside)
    if mass is not None:
        places_bins = tl.arange(0, BINS)
        where = program.to(tl.int64) * bins + places_bins
        before = tl.load(mass + where, mask=places_bins < bins, other=0.0)
        tl.store(mass + where, before + by_distance, mask=places_bins < bins)


@triton.jit(
    do_not_specialize=["place_first", "place_stop", "key_first", "key_stop", "row_first", "row_stop", "queries"]
)
@no_type_check
def chosen_weights(
    q, q_strides, k, k_strides, numbers, spans, mask, bias, shift, inverse, chosen_places, chosen_keys, found,
    place_first, place_stop, key_first, key_stop, row_first, row_stop, queries, row_count, column_count,
    heads, group, dim, scale, softcap,
    MASK_BY_PLACE: tl.constexpr, BIAS_BY_PLACE: tl.constexpr, WIDE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """The weights themselves, of chosen queries and chosen keys: one program for each tile of them.

    Those from ``row_first`` to ``row_stop`` are made. ``chosen_places`` or ``chosen_keys`` is None for all of them.
    """
    program = tl.program_id(0)
    across, down = tl.cdiv(column_count, KEYS), tl.cdiv(row_stop - row_first, QUERIES)
    pair = program // (across * down)
    batch, head = pair // heads, pair % heads
    down_places = row_first + program // across % down * QUERIES + tl.arange(0, QUERIES)
    across_places = program % across * KEYS + tl.arange(0, KEYS)
    ours, theirs = down_places < row_stop, across_places < column_count
    places, keys = down_places, across_places
    if chosen_places is not None:
        places = tl.load(chosen_places + down_places, mask=ours, other=0)
    if chosen_keys is not None:
        keys = tl.load(chosen_keys + across_places, mask=theirs, other=0)
    ours = ours & (places >= place_first) & (places < place_stop)
    inside = theirs & (keys >= key_first) & (keys < key_stop)
    rows = tl.load(numbers + places, mask=ours, other=0)
    base = batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    q_tile = vectors(q, base, rows, ours, DIM, q_strides[2], q_strides[3], dim)
    k_base = batch.to(tl.int64) * k_strides[0] + (head // group).to(tl.int64) * k_strides[1]
    k_tile = vectors(k, k_base, keys, inside, DIM, k_strides[2], k_strides[3], dim)
    near = ours[:, None] & inside[None, :]
    scores, visible = scored(
        q_tile, k_tile, batch, head, rows, places, ours, keys, near, spans, mask, bias, scale, softcap,
        MASK_BY_PLACE, BIAS_BY_PLACE, WIDE,
    )  # fmt: skip
    known = pair.to(tl.int64) * queries + places
    floor = tl.load(shift + known, mask=ours, other=0.0)
    upside = tl.load(inverse + known, mask=ours, other=0.0)
    weights = tl.where(visible, tl.exp(scores - floor[:, None]) * upside[:, None], 0.0)
    where = (pair.to(tl.int64) * row_count + down_places[:, None]) * column_count + across_places[None, :]
    tl.store(found + where, weights, mask=ours[:, None] & theirs[None, :])
