"""What each thread keeps while it works: operands packed for the matrix products, scores, and sums of rows."""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from multihead.kernels.native.compiled.arithmetic import integers, padded, take
from multihead.kernels.native.compiled.inner import inner
from multihead.kernels.native.compiled.largest import FEW, GROUPS, Search
from multihead.kernels.native.compiled.products import LANES, LINE, TILE_KEYS, TILE_ROWS
from multihead.kernels.native.record import CHUNK, KEPT_ROWS, ROWS

NEAR_ROWS = 32
"""Queries that a thread computes together where it keeps exponentials of one chunk: they stay in its own cache."""

_LINE = 16
"""Numbers of a line of the processor's caches, where all that is kept begins."""


class Room(NamedTuple):
    """Addresses of matrices, and of what the packed keys and values are: of which head, from which key, how many."""

    queries: int
    keys: int
    values: int
    output: int
    scores: int
    packed: int
    sums: int
    """Of the weights that the keys of a chunk receive."""


class Rows(NamedTuple):
    """Addresses of the numbers of each query that is computed: the keys it sees, its largest score, its sums so far."""

    first: int
    stop: int
    filled: int
    total: int
    moment: int
    peak: int
    chunk_peaks: int
    """The largest score so far when each chunk was computed, chunk after chunk."""
    search: Search


@register_jitable
def queries_at_once(keys, kept):
    """How many queries of a job are computed together."""
    if not kept:
        return ROWS
    return NEAR_ROWS if keys <= CHUNK else KEPT_ROWS


@register_jitable
def _floats_of(keys, dim, value_dim, kept):
    """Numbers of all that is kept, in the order of the fields of Room, Rows, Search; of 64 bits, they count as two."""
    width, line = min(CHUNK, padded(keys, TILE_KEYS)), padded(value_dim, LANES)
    values = 0 if line == value_dim else width * line
    chunks = (keys + CHUNK - 1) // CHUNK if kept else 1
    rows = queries_at_once(keys, kept) * chunks if kept else TILE_ROWS
    matrices = ROWS * dim, width * dim, values, ROWS * line, rows * LINE, 2 * 3, CHUNK
    return *matrices, 2 * ROWS, 2 * ROWS, 2 * ROWS, 2 * ROWS, 2 * ROWS, ROWS, chunks * ROWS, GROUPS, FEW, FEW


def floats_of(keys: int, dim: int, value_dim: int, *, kept: bool) -> int:
    """Numbers that one thread has room for."""
    return sum(padded(count, _LINE) for count in _floats_of(keys, dim, value_dim, kept)) + _LINE


@inner
def rooms_of(call):
    """The room of the thread that asks: no two are given the same.

    Addresses, not arrays: Numba counts who holds an array, at every row and in every thread.
    """
    floats = _floats_of(call.keys, call.dim, call.value_dim, call.kept)
    start = padded(call.scratch + 4 * call.scratch_floats * take(call.taken + 8), 4 * _LINE)
    places = np.empty(len(floats), np.int64)
    for x in range(len(floats)):
        places[x] = start
        start += 4 * padded(floats[x], _LINE)
    room = Room(places[0], places[1], places[2], places[3], places[4], places[5], places[6])
    search = Search(places[14], places[15], places[16])
    rows = Rows(places[7], places[8], places[9], places[10], places[11], places[12], places[13], search)
    integers(room.packed, 0, 1)[0] = -1
    return room, rows
