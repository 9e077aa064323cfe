"""The second pass: statistics of keys, from the exponentials of the first and the log-sum-exp of each row."""

import math

import numpy as np

from multihead.kernels.native.compiled.arithmetic import (
    NOTHING,
    ZERO,
    add_scaled,
    doubles,
    fill,
    floats,
    integers,
    largest,
    scaled,
    total_of,
)
from multihead.kernels.native.compiled.inner import inner
from multihead.kernels.native.compiled.products import LINE
from multihead.kernels.native.record import CHUNK, KEPT_ROWS, ROWS


@inner
def _add_by_distance(call, head, strand, place, row, left, right, factor):
    """Weights by distance: of a query at ``place``, counted from the chunk's first key."""
    mass = doubles(call.offsets, (head * call.strands + strand) * call.bins, call.bins)
    edges = integers(call.edges, 0, call.bins + 1)
    for x in range(call.bins):
        # distance d is key place - d
        near, far = min(place - edges[x] + 1, right), max(place - edges[x + 1] + 1, left)
        if far < near:
            mass[x] += factor * total_of(row[far:near])


@inner
def _add_to_blocks(call, head, piece, begin, row, left, right, factor):
    place = (head * call.pieces + piece) * call.across
    cells = doubles(call.blocks, place, call.across)
    cell = (begin + left) // call.block_width
    while cell * call.block_width < begin + right:
        near = max(cell * call.block_width - begin, left)
        far = min((cell + 1) * call.block_width - begin, right)
        cells[cell] += factor * total_of(row[near:far])
        if call.block_peaks:
            peaks = floats(call.block_peaks, place + cell, 1)
            peaks[0] = max(peaks[0], factor * largest(row[near:far]))
        cell += 1


@inner
def _keep_weights(call, b, h, i, begin, row, left, right, factor):
    """Whole rows, whole columns, all weights, and their mean over heads."""
    used, query = row[left:right], (b * call.heads + h) * call.queries + i
    if call.rows:
        slot = integers(call.row_slots, i, 1)[0]
        if slot >= 0:
            place = ((b * call.heads + h) * call.row_count + slot) * call.keys + begin + left
            scaled(floats(call.rows, place, used.size), used, factor)
    if call.columns:
        columns = integers(call.column_keys, 0, call.column_count)
        answers = floats(call.columns, query * call.column_count, call.column_count)
        for x in range(call.column_count):
            j = columns[x] - begin
            if left <= j < right:
                answers[x] = factor * row[j]
    if call.each:
        place = ((b * call.heads + h) * call.each_count + i - call.each_first) * call.keys + begin + left
        scaled(floats(call.each, place, used.size), used, factor)
    if call.mean:
        place = (b * call.queries + i) * call.keys + begin + left
        add_scaled(floats(call.mean, place, used.size), used, factor / np.float32(call.heads))


@inner
def second_pass(call, b, h, job, strand, start, rows, low, high, room, state):
    """Statistics of keys, from the exponentials of the first pass and the log-sum-exp of each row."""
    # what finish_rows put in the place of the sums
    share, ceiling = doubles(state.total, 0, rows), doubles(state.moment, 0, rows)
    first, stop, sums = integers(state.first, 0, rows), integers(state.stop, 0, rows), floats(room.sums, 0, CHUNK)
    head = b * call.heads + h
    for c in range((high - low + CHUNK - 1) // CHUNK):
        begin = low + c * CHUNK
        width = min(high - begin, CHUNK)
        peak = floats(state.chunk_peaks, c * ROWS, rows)
        fill(sums, ZERO)
        for r in range(rows):
            left = min(max(first[r] - begin, 0), width)
            right = max(min(stop[r] - begin, width), left)
            if left == right or peak[r] == NOTHING:
                continue
            factor = np.float32(math.exp(float(peak[r]) - ceiling[r]) * share[r])
            row, i = floats(room.scores, (c * KEPT_ROWS + r) * LINE, width), start + r
            if call.received:
                add_scaled(sums[left:right], row[left:right], factor)
            if call.offsets:
                place = integers(call.places, i, 1)[0] - begin
                _add_by_distance(call, head, strand, place, row, left, right, factor)
            if call.blocks:
                piece = i // call.block_height if call.whole_blocks else call.first_job + job
                _add_to_blocks(call, head, piece, begin, row, left, right, factor)
            _keep_weights(call, b, h, i, begin, row, left, right, factor)
        if call.received:
            total = doubles(call.received, (head * call.strands + strand) * call.keys + begin, width)
            for j in range(width):
                total[j] += sums[j]
