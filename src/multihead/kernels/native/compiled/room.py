"""What each thread keeps while it works: operands packed for the matrix products, scores, and sums of rows."""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from multihead.kernels.native.compiled.arithmetic import padded, take
from multihead.kernels.native.compiled.inner import inner
from multihead.kernels.native.compiled.largest import FEW, GROUPS
from multihead.kernels.native.compiled.products import LANES, LINE, TILE_KEYS, TILE_ROWS
from multihead.kernels.native.record import CHUNK, KEPT_ROWS, ROWS

NEAR_ROWS = 32
"""Queries that a thread computes together where it keeps exponentials of one chunk: they stay in its own cache."""

_CACHE_LINE = 64
"""Bytes; where operands begin."""


class Room(NamedTuple):
    """Addresses of matrices, and what the packed keys and values are: of which head, from which key, how many."""

    queries: int
    keys: int
    values: int
    output: int
    scores: int
    packed: np.ndarray


class Rows(NamedTuple):
    """Of each query that is computed: the keys it sees, its largest score and its sums so far; and room for one row."""

    first: np.ndarray
    stop: np.ndarray
    peak: np.ndarray
    total: np.ndarray
    moment: np.ndarray
    filled: np.ndarray
    chunk_peaks: np.ndarray
    group_peaks: np.ndarray
    few_scores: np.ndarray
    few_keys: np.ndarray


@register_jitable
def queries_at_once(keys, kept):
    """How many queries of a job are computed together."""
    if not kept:
        return ROWS
    return NEAR_ROWS if keys <= CHUNK else KEPT_ROWS


@register_jitable
def _floats_of(keys, dim, value_dim, kept):
    """Numbers of each matrix of a room, in their order."""
    width, line = min(CHUNK, padded(keys, TILE_KEYS)), padded(value_dim, LANES)
    values = 0 if line == value_dim else width * line
    rows = queries_at_once(keys, kept) * ((keys + CHUNK - 1) // CHUNK) if kept else TILE_ROWS
    return ROWS * dim, width * dim, values, ROWS * line, rows * LINE


def floats_of(keys: int, dim: int, value_dim: int, *, kept: bool) -> int:
    """Numbers that one thread has room for."""
    return sum(_floats_of(keys, dim, value_dim, kept)) + _CACHE_LINE // 4


@inner
def room_of(call):
    """The room of the thread that asks: no two are given the same."""
    start = padded(call.scratch + 4 * call.scratch_floats * take(call.taken + 8), _CACHE_LINE)
    queries, keys, values, output, _ = _floats_of(call.keys, call.dim, call.value_dim, call.kept)
    second = start + 4 * queries
    third = second + 4 * keys
    fourth = third + 4 * values
    packed = np.empty(3, np.int64)
    packed[0] = -1
    return Room(start, second, third, fourth, fourth + 4 * output, packed)


@inner
def rows_of(call):
    """Room for the sums of as many queries as are ever computed together."""
    chunks = (call.keys + CHUNK - 1) // CHUNK if call.kept else 1
    return Rows(
        np.empty(ROWS, np.int64),
        np.empty(ROWS, np.int64),
        np.empty(ROWS, np.float32),
        np.empty(ROWS, np.float64),
        np.empty(ROWS, np.float64),
        np.empty(ROWS, np.int64),
        np.empty((chunks, ROWS), np.float32),
        np.empty(GROUPS, np.float32),
        np.empty(FEW, np.float32),
        np.empty(FEW, np.int32),
    )
