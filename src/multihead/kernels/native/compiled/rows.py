"""The first pass: scores, exponentials and output of some queries of one head, and the statistics of their rows."""

import math

import numpy as np

from multihead.kernels.native.compiled.arithmetic import (
    NOTHING,
    ONE,
    ZERO,
    add,
    booleans,
    cap,
    doubles,
    exponentials,
    fill,
    floats,
    hide,
    integers,
    largest,
    padded,
    scale_by,
    scaled_and_checked,
    sum_of_nan,
    to_weights,
)
from multihead.kernels.native.compiled.inner import inlined, inner
from multihead.kernels.native.compiled.largest import group_peaks, take_top
from multihead.kernels.native.compiled.products import (
    LANES,
    LINE,
    TILE_KEYS,
    TILE_ROWS,
    narrow_value_tile,
    pack_keys,
    pack_queries,
    pack_values,
    score_tile,
    value_tile,
)
from multihead.kernels.native.record import CHUNK, KEPT_ROWS, ROWS


@inner
def _adjusted(call, scores, b, h, i, first):
    """Softcap, bias and mask on a query's scores of the keys from ``first`` on."""
    if call.softcap:
        cap(scores, call.softcap)
    if call.bias:
        place = b * call.bias_batch + h * call.bias_head + i * call.bias_query
        if call.bias_key:
            add(scores, floats(call.bias, place + first, scores.size))
        else:
            value = floats(call.bias, place, 1)[0]
            for j in range(scores.size):
                scores[j] += value
    if call.mask:
        place = b * call.mask_batch + h * call.mask_head + i * call.mask_query
        if call.mask_key:
            hide(scores, booleans(call.mask, place + first, scores.size))
        elif not booleans(call.mask, place, 1)[0]:
            fill(scores, NOTHING)


@inner
def begin_rows(call, b, h, start, rows, state):
    """Nothing gathered yet, and the keys that each query sees; the range of those that any of them sees."""
    low, high = call.keys, 0
    firsts, stops, filled = (
        integers(state.first, 0, rows),
        integers(state.stop, 0, rows),
        integers(state.filled, 0, rows),
    )
    peak, total, moment = floats(state.peak, 0, rows), doubles(state.total, 0, rows), doubles(state.moment, 0, rows)
    for r in range(rows):
        first, stop = 0, call.keys
        if call.first:
            place = b * call.span_batch + h * call.span_head + (start + r) * call.span_query
            first, stop = integers(call.first, place, 1)[0], integers(call.stop, place, 1)[0]
        firsts[r], stops[r] = first, stop
        peak[r], total[r], moment[r], filled[r] = NOTHING, 0.0, 0.0, 0
        if call.top:
            query = (b * call.heads + h) * call.queries + start + r
            fill(floats(call.top, query * call.top_count, call.top_count), NOTHING)
            fill(integers(call.top_keys, query * call.top_count, call.top_count), -1)
        if first < stop:
            low, high = min(low, first), max(high, stop)
    return low, max(low, high)


@inner
def first_pass(call, b, h, start, rows, low, high, room, state):
    """Statistics of rows, exponentials and output of the queries from ``start`` on, chunk by chunk of keys."""
    kv, line = h // call.group, padded(call.value_dim, LANES)
    pack_queries(call, b, h, start, rows, room.queries)
    if call.output:
        fill(floats(room.output, 0, padded(rows, TILE_ROWS) * line), ZERO)
    for c in range((high - low + CHUNK - 1) // CHUNK):
        begin = low + c * CHUNK
        width = min(high - begin, CHUNK)
        _pack(call, b, kv, begin, width, line, room)
        for top in range(0, rows, TILE_ROWS):
            tile = room.scores + (4 * (c * KEPT_ROWS + top) * LINE if call.kept else 0)
            bottom = min(top + TILE_ROWS, rows)
            near, far = _seen_by_tile(top, bottom, begin, width, state)
            for place in range(near // TILE_KEYS * TILE_KEYS, far, TILE_KEYS):
                key = room.keys + 4 * place * call.dim
                score_tile(call.dim, room.queries + 4 * top * call.dim, key, 0, tile + 4 * place, 4 * LINE)
            for r in range(top, bottom):
                row = floats(tile, (r - top) * LINE, width)
                factor = _row_of_chunk(call, b, h, start, r, row, begin, near, far, c if call.kept else 0, state)
                if call.output and c and factor != ONE:
                    scale_by(floats(room.output, r * line, line), factor)
            if call.output and near < far:
                _add_values(call, b, kv, begin, tile, near, far, line, room.output + 4 * top * line, room)


@inlined
def _pack(call, b, kv, begin, width, line, room):
    """The keys of a chunk, and values whose number of features is no multiple of LANES, unless they are packed."""
    head, packed = b * call.heads + kv, integers(room.packed, 0, 3)
    if packed[0] == head and packed[1] == begin and packed[2] == width:
        return
    packed[0], packed[1], packed[2] = head, begin, width
    pack_keys(call, b, kv, begin, width, room.keys)
    if call.output and line != call.value_dim:
        pack_values(call, b, kv, begin, width, line, room.values)


@inlined
def _seen_by_tile(top, bottom, begin, width, state):
    """The keys of a chunk that any query of a tile sees."""
    near, far = width, 0
    first, stop = integers(state.first, 0, bottom), integers(state.stop, 0, bottom)
    for r in range(top, bottom):
        if first[r] < stop[r]:
            near, far = min(near, max(first[r] - begin, 0)), max(far, min(stop[r] - begin, width))
    return near, far


@inlined
def _add_values(call, b, kv, begin, tile, near, far, line, target, room):
    """What a tile's exponentials of the keys from ``near`` to ``far`` find among the values."""
    value, step = room.values, 4 * line
    if line == call.value_dim:
        value = call.v + 4 * (b * call.v_batch + kv * call.v_head + begin * call.v_token)
        step = 4 * call.v_token
    weight, value = tile + 4 * near, value + near * step
    wide = line // TILE_KEYS * TILE_KEYS
    for d in range(0, wide, TILE_KEYS):
        value_tile(far - near, weight, value + 4 * d, step, target + 4 * d, 4 * line)
    if wide < line:
        narrow_value_tile(far - near, weight, value + 4 * wide, step, target + 4 * wide, 4 * line)


@inlined
def _row_of_chunk(call, b, h, start, r, row, begin, near, far, c, state):
    """Turn one query's scores of a chunk into exponentials; by what the sums and the output so far shrink.

    The keys from ``near`` to ``far`` are those that a query of the tile sees.
    """
    peak, chunk_peak = floats(state.peak, r, 1), floats(state.chunk_peaks, c * ROWS + r, 1)
    total, moment = doubles(state.total, r, 1), doubles(state.moment, r, 1)
    left = min(max(integers(state.first, r, 1)[0] - begin, 0), row.size)
    right = max(min(integers(state.stop, r, 1)[0] - begin, row.size), left)
    fill(row[near:left], ZERO)
    fill(row[right:far], ZERO)
    chunk_peak[0] = NOTHING
    if left == right:
        return ONE
    scores = row[left:right]
    _adjusted(call, scores, b, h, start + r, begin + left)
    highest = _peak_and_top(call, b, h, start + r, r, scores, begin + left, state) if call.top else largest(scores)
    factor = ONE
    if highest > peak[0]:
        # what was gathered so far was relative to a smaller peak
        shift = float(peak[0]) - float(highest)
        shrunk = math.exp(shift)
        moment[0] = shrunk * (moment[0] + shift * total[0]) if shrunk else 0.0 * moment[0]
        total[0] *= shrunk
        peak[0], factor = highest, np.float32(shrunk)
    if peak[0] == NOTHING:
        # hidden so far; a NaN among them must not be lost
        moment[0] += 0.0 * sum_of_nan(scores)
        fill(scores, ZERO)
        return factor
    sums = exponentials(scores, peak[0])
    total[0] += sums[0]
    moment[0] += sums[1]
    chunk_peak[0] = peak[0]
    return factor


@inlined
def _peak_and_top(call, b, h, i, r, scores, first, state):
    """The largest of a query's scores of the keys from ``first`` on; the largest few join those found so far."""
    highest = group_peaks(scores, state.search)
    place = ((b * call.heads + h) * call.queries + i) * call.top_count
    top_scores = floats(call.top, place, call.top_count)
    if highest > top_scores[call.top_count - 1]:
        filled = integers(state.filled, r, 1)
        filled[0] = take_top(
            scores,
            first,
            highest,
            top_scores,
            integers(call.top_keys, place, call.top_count),
            filled[0],
            state.search,
        )
    return highest


@inner
def finish_rows(call, b, h, start, rows, room, state):
    """The statistics of rows, from what the first pass gathered.

    What the second pass needs takes the place of that: the weight of a score s is exp(s - moment) · total.
    """
    peak, total, moment = floats(state.peak, 0, rows), doubles(state.total, 0, rows), doubles(state.moment, 0, rows)
    line = padded(call.value_dim, LANES)
    row = (b * call.heads + h) * call.queries + start
    lse, peaks = floats(call.lse, row, rows), floats(call.peak, row, rows)
    entropy, sinks = floats(call.entropy, row, rows), floats(call.sink, row, rows)
    for r in range(rows):
        if moment[r] != moment[r] or peak[r] == np.float32(np.inf):
            integers(call.flag, 0, 1)[0] = 1
        highest = float(peak[r])
        ceiling, sink = highest, -math.inf
        if call.sinks:
            sink = float(floats(call.sinks, h, 1)[0])
            ceiling = max(highest, sink)
        if ceiling == -math.inf:
            ceiling = 0.0
        seen = 1.0 if highest == ceiling else math.exp(highest - ceiling)
        sunk = math.exp(sink - ceiling) if call.sinks else 0.0
        every = total[r] * seen + sunk
        share = 1.0 / every if every else 0.0
        log_sum = math.log(every) if every else -math.inf
        disorder = 0.0
        if total[r] and seen:
            disorder -= (moment[r] + total[r] * (highest - ceiling - log_sum)) * seen * share
        if sunk:
            disorder -= (sink - ceiling - log_sum) * sunk * share
        lse[r], peaks[r], entropy[r], sinks[r] = ceiling + log_sum, peak[r], max(disorder, 0.0), sunk * share
        if call.top:
            top = floats(call.top, (row + r) * call.top_count, call.top_count)
            to_weights(top, np.float32(ceiling), np.float32(share))
        if call.output:
            place = b * call.output_batch + h * call.output_head + (start + r) * call.output_token
            output, found = floats(call.output, place, call.value_dim), floats(room.output, r * line, call.value_dim)
            if scaled_and_checked(output, found, np.float32(seen * share)) != ZERO:
                integers(call.flag, 0, 1)[0] = 1
        total[r], moment[r] = share, ceiling
