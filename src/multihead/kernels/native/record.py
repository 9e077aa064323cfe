"""One call as the compiled code reads it: addresses, strides in elements, sizes. It is the whole interface."""

import struct
from array import array

import numpy as np

_ADDRESSES = (
    "taken",  # int64: units that were taken, threads that came
    "scratch",
    "flag",  # int64: whether something that is no number was met
    "starts",  # int64 (jobs + 1): the first query of each job, and the end of the last
    *("q", "k", "v", "output"),
    *("first", "stop"),  # int64: the keys that each query sees, where it sees one range; 0: all
    *("mask", "bias", "sinks"),  # 0 where there is none
    "places",  # int64 (queries): the position of each query among the keys
    *("lse", "peak", "entropy", "sink"),  # (batch, heads, queries)
    *("top", "top_keys"),  # (batch, heads, queries, top_count): scores, in the end weights; int64
    "received",  # float64 (batch, heads, strands, keys)
    *("edges", "offsets"),  # int64 (bins + 1), float64 (batch, heads, strands, bins)
    *("blocks", "block_peaks"),  # float64 and float32 (batch, heads, pieces, blocks across)
    *("row_slots", "rows"),  # int64 (queries): its place among the rows or -1; (batch, heads, rows, keys)
    *("column_keys", "columns"),  # int64; (batch, heads, queries, columns)
    "mean",  # (batch, queries, keys): the mean of the heads' weights
    "each",  # (batch, heads, each_count, keys): the weights of queries from each_first on
)
_STRIDES = (
    *("q_batch", "q_head", "q_token", "k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token"),
    *("output_batch", "output_head", "output_token"),
    *("span_batch", "span_head", "span_query"),
    *("mask_batch", "mask_head", "mask_query", "mask_key"),
    *("bias_batch", "bias_head", "bias_query", "bias_key"),
)
_SIZES = (
    *("batch", "heads", "group", "queries", "keys", "dim", "value_dim"),
    *("jobs", "first_job", "strands", "scratch_floats"),
    *("top_count", "bins", "block_height", "block_width", "pieces", "across", "row_count", "column_count"),
    *("each_first", "each_count"),
    *("kept", "together"),  # whether exponentials are kept; whether one thread takes all heads of its rows
    "whole_blocks",  # whether jobs hold whole rows of blocks, and not parts of one
)
_WHOLE = (*_ADDRESSES, *_STRIDES, *_SIZES)
_REAL = ("scale", "softcap")
CALL = np.dtype([(name, np.int64) for name in _WHOLE] + [(name, np.float64) for name in _REAL])
"""One call; softcap is 0 where there is none."""


def record_of(numbers: dict[str, int | float]) -> array:
    """One call, from its numbers by name, as 64 bits each; what is not named is 0."""
    real = struct.pack(f"{len(_REAL)}d", *(numbers.get(name, 0.0) for name in _REAL))
    record = array("q", [numbers.get(name, 0) for name in _WHOLE])
    record.frombytes(real)
    return record


ROWS = 256
"""Most queries of a job."""

KEPT_ROWS = 128
"""Most queries of a job that keeps all its exponentials."""

SHORT_ROWS = 64
"""Most queries of a job where all keys are packed at once, and stay so for the next job of the head."""

CHUNK = 2048
"""Keys that are packed together for the matrix products."""
