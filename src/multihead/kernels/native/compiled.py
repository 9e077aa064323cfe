"""The compiled part of the CPU kernel: what one thread does with some rows of some heads.

For at most ``ROWS`` queries of one head, chunk by chunk of keys: the scores by a matrix product, one pass that turns
them into exponentials and gathers the statistics of rows, the output by another product. The exponentials are relative
to the largest score *so far* (Milakov & Gimelshein 2018), so what was gathered before is rescaled when a larger one
comes. Where statistics of keys are asked for, the exponentials are kept until the log-sum-exp of their rows is known,
and are then turned into weights and summed in a second pass: no score is computed twice.

Everything here is plain data: addresses, strides in elements, sizes. ``CALL`` is the whole interface. All of it stands
in one file because Numba, which keeps the compiled code on disk, compiles anew when this file changes and no other.
"""

import math

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_ADDRESSES = (
    "sgemm",
    "taken",  # int64: units that were taken, threads that came
    "scratch",
    "flag",  # int64: whether something that is no number was met
    "starts",  # int64 (jobs + 1): the first query of each job, and the end of the last
    *("q", "k", "v", "output"),
    *("first", "stop"),  # int64: the keys that each query sees, where it sees one range
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
CALL = np.dtype(
    [(name, np.int64) for name in (*_ADDRESSES, *_STRIDES, *_SIZES)] + [("scale", np.float64), ("softcap", np.float64)]
)
"""One call; softcap is 0 where there is none."""

ROWS = 128
"""Most queries of one job."""

CHUNK = 1024
"""Keys of one matrix product: with ROWS, scores that stay in a core's own cache."""

_GROUPS = 64
"""Interleaved groups of keys, of which the largest score is kept while the largest of all are looked for."""

_SUMS = {"contract", "reassoc", "nsz"}
"""Sums may be reordered, so that they run in vector registers; NaN and inf keep their meaning."""

_NOTHING = np.float32(-np.inf)
_SMALLEST = np.float32(-87.0)
"""Below it, exponentials are taken for 0: they are less than the smallest normal number."""


@intrinsic
def _product(typingctx, function, transposed, m, n, k, scale, a, lda, b, ldb, beta, c, ldc):
    """BLAS's sgemm, column by column: C = scale · op(A) B + beta · C, A transposed or not."""
    integer, address, number = types.int32, types.int64, types.float32
    arguments = (address, integer, integer, integer, integer, number)
    signature = types.void(*arguments, address, integer, address, integer, number, address, integer)

    def codegen(context, builder, signature, values):
        function, transposed, *numbers = values
        any_pointer = ir.IntType(8).as_pointer()
        letter = ir.IntType(8)
        letters = (
            builder.select(builder.trunc(transposed, ir.IntType(1)), letter(ord("T")), letter(ord("N"))),
            letter(ord("N")),
        )

        def reference(value):
            return builder.bitcast(cgutils.alloca_once_value(builder, value), any_pointer)

        m, n, k, scale, a, lda, b, ldb, beta, c, ldc = numbers
        call = [*map(reference, (*letters, m, n, k, scale))]
        for matrix, leading, then in ((a, lda, None), (b, ldb, beta), (c, ldc, None)):
            call += [builder.inttoptr(matrix, any_pointer), reference(leading)]
            call += [] if then is None else [reference(then)]
        kind = ir.FunctionType(ir.VoidType(), [any_pointer] * len(call))
        builder.call(builder.inttoptr(function, kind.as_pointer()), call)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _take(typingctx, address):
    """The number at an address, which grows by one: no two threads are given the same."""

    def codegen(context, builder, signature, values):
        number = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(values[0], number.as_pointer()), number(1), "monotonic")

    return types.int64(types.int64), codegen


def _pointer_to(kind):
    """What turns an address into a pointer to numbers of a kind."""

    @intrinsic
    def pointer(typingctx, address):
        def codegen(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), codegen

    return pointer


_to_floats = _pointer_to(types.float32)
_to_doubles = _pointer_to(types.float64)
_to_integers = _pointer_to(types.int64)
_to_booleans = _pointer_to(types.uint8)


@njit
def _floats(address, place, count):
    return carray(_to_floats(address + 4 * place), count)


@njit
def _doubles(address, place, count):
    return carray(_to_doubles(address + 8 * place), count)


@njit
def _integers(address, place, count):
    return carray(_to_integers(address + 8 * place), count)


@njit
def _booleans(address, place, count):
    return carray(_to_booleans(address + place), count)


@intrinsic
def _larger(typingctx, a, b):
    """The larger of two numbers, in the form that LLVM turns into a vector reduction; NaN may be lost."""

    def codegen(context, builder, signature, values):
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *values, flags=flags), *values, flags=flags)

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def _bits(typingctx, number):
    def codegen(context, builder, signature, values):
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _number(typingctx, bits):
    def codegen(context, builder, signature, values):
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), codegen


# adding and taking away 1.5 · 2²³ rounds to whole numbers and leaves them in the low bits
_ROUNDER = np.float32(12582912.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN_2 = (np.float32(0.693359375), np.float32(-2.12194440e-4))
_EXP = tuple(np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3))
_EXP += tuple(np.float32(c) for c in (4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))
_TANH = tuple(np.float32(c) for c in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2))
_TANH += tuple(np.float32(c) for c in (1.33314422036e-1, -3.33332819422e-1))
_ONE, _TWO = np.float32(1.0), np.float32(2.0)


@njit(fastmath={"contract"})
def _exp(x):
    """Exponential of a number between -87 and 87; Cephes' expf (Moshier 1989): 2ⁿ times a polynomial of the rest."""
    rounded = x * _LOG2_E + _ROUNDER
    n = _bits(rounded)
    rounded -= _ROUNDER
    r = x - rounded * _LN_2[0]
    r -= rounded * _LN_2[1]
    p = _EXP[0] * r + _EXP[1]
    p = p * r + _EXP[2]
    p = p * r + _EXP[3]
    p = p * r + _EXP[4]
    p = p * r + _EXP[5]
    p = p * (r * r) + r + _ONE
    return _number(_bits(p) + (n << np.int32(23)))


@njit(fastmath={"contract"})
def _tanh(x):
    """Hyperbolic tangent; Cephes' tanhf (Moshier 1989): a polynomial for small numbers, else by exp."""
    size = abs(x)
    limited = np.float32(9.0) if size > np.float32(9.0) else size
    large = _ONE - _TWO / (_exp(limited + limited) + _ONE)
    z = x * x
    p = _TANH[0] * z + _TANH[1]
    p = p * z + _TANH[2]
    p = p * z + _TANH[3]
    p = p * z + _TANH[4]
    small = p * z * x + x
    signed = -large if x < np.float32(0.0) else large
    # NaN is neither
    return signed if size >= np.float32(0.625) else small


@njit(fastmath={"contract"})
def _cap(scores, softcap):
    inverse = np.float32(1.0 / softcap)
    cap = np.float32(softcap)
    for j in range(scores.size):
        scores[j] = cap * _tanh(scores[j] * inverse)


@njit
def _add(scores, bias):
    for j in range(scores.size):
        scores[j] += bias[j]


@njit
def _hide(scores, allowed):
    for j in range(scores.size):
        scores[j] = scores[j] if allowed[j] else _NOTHING


@njit
def _fill(numbers, value):
    for j in range(numbers.size):
        numbers[j] = value


@njit
def _largest(scores):
    found = _NOTHING
    for j in range(scores.size):
        found = _larger(scores[j], found)
    return found


@njit(fastmath=_SUMS)
def _exponentials(scores, peak):
    """exp(s - peak) in place of each score; Σ of them, and Σ (s - peak) exp(s - peak)."""
    total, moment = np.float32(0.0), np.float32(0.0)
    for j in range(scores.size):
        shifted = scores[j] - peak
        # NaN is not less than anything, and stays
        hidden = shifted < _SMALLEST
        shifted = _SMALLEST if hidden else shifted
        e = _exp(shifted)
        e = np.float32(0.0) if hidden else e
        scores[j] = e
        total += e
        moment += e * shifted
    return total, moment


@njit(fastmath=_SUMS)
def _sum(numbers):
    total = np.float32(0.0)
    for j in range(numbers.size):
        total += numbers[j]
    return total


@njit(fastmath={"contract"})
def _add_scaled(total, numbers, factor):
    for j in range(numbers.size):
        total[j] += factor * numbers[j]


@njit
def _scaled(target, numbers, factor):
    for j in range(numbers.size):
        target[j] = factor * numbers[j]


@njit
def _scale(numbers, factor):
    for j in range(numbers.size):
        numbers[j] *= factor


def _lanes(builder, address):
    """The numbers of all groups at an address, as one vector."""
    vector = ir.VectorType(ir.FloatType(), _GROUPS)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=4)


@intrinsic
def _raise_lanes(typingctx, peaks, scores):
    """Each peak, or the score beside it if that is larger, in place of the peak."""

    def codegen(context, builder, signature, values):
        known, new = (_lanes(builder, address) for address in values)
        flags = ("nnan", "nsz")
        raised = builder.select(builder.fcmp_ordered(">", new, known, flags=flags), new, known, flags=flags)
        builder.store(raised, builder.inttoptr(values[0], raised.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _highest_lane(typingctx, peaks):
    """The largest peak."""

    def codegen(context, builder, signature, values):
        lanes = _lanes(builder, values[0])
        kind = ir.FunctionType(ir.FloatType(), [lanes.type])
        name = f"llvm.vector.reduce.fmax.v{_GROUPS}f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [lanes], fastmath=("nnan", "nsz"))

    return types.float32(types.int64), codegen


def _spread(builder, number, lanes):
    """A number in every lane."""
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), number, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _GROUPS), [0] * _GROUPS)
    return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), everywhere)


@intrinsic
def _lanes_from(typingctx, scores, least):
    """Which of so many scores are no less: bit g stands for the score g."""

    def codegen(context, builder, signature, values):
        lanes = _lanes(builder, values[0])
        found = builder.fcmp_ordered(">=", lanes, _spread(builder, values[1], lanes.type))
        return builder.bitcast(found, ir.IntType(_GROUPS))

    return types.uint64(types.int64, types.float32), codegen


@intrinsic
def _drop_lanes(typingctx, peaks, peak):
    """How many groups have this peak; they lose it."""

    def codegen(context, builder, signature, values):
        lanes = _lanes(builder, values[0])
        found = builder.fcmp_ordered("==", lanes, _spread(builder, values[1], lanes.type))
        nothing = ir.Constant(lanes.type, [float("-inf")] * _GROUPS)
        kept = builder.select(found, nothing, lanes)
        builder.store(kept, builder.inttoptr(values[0], lanes.type.as_pointer()), align=4)
        return builder.ctpop(builder.bitcast(found, ir.IntType(_GROUPS)))

    return types.int64(types.int64, types.float32), codegen


@intrinsic
def _lowest_bit(typingctx, bits):
    def codegen(context, builder, signature, values):
        return builder.cttz(values[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@njit
def _group_peaks(scores, peaks):
    """The largest score of each group, group g holding the scores g, g + 64, ..., and the largest of all."""
    _fill(peaks, _NOTHING)
    whole = scores.size // _GROUPS * _GROUPS
    for start in range(0, whole, _GROUPS):
        _raise_lanes(peaks.ctypes.data, scores.ctypes.data + 4 * start)
    for j in range(whole, scores.size):
        peaks[j - whole] = _larger(scores[j], peaks[j - whole])
    return _highest_lane(peaks.ctypes.data)


@njit
def _least_of_top(peaks, peak, count):
    """A score that at least ``count`` scores reach: the peak that so many groups reach. The peaks are used up."""
    while peak > _NOTHING:
        count -= _drop_lanes(peaks.ctypes.data, peak)
        if count <= 0:
            break
        peak = _highest_lane(peaks.ctypes.data)
    return peak


@njit
def _insert(score, key, top_scores, top_keys, filled):
    """Put a score into the sorted list behind those that are no smaller; how many the list then holds."""
    count = top_scores.size
    if not score > top_scores[count - 1]:
        return filled
    place = min(filled, count - 1)
    while place > 0 and top_scores[place - 1] < score:
        top_scores[place], top_keys[place] = top_scores[place - 1], top_keys[place - 1]
        place -= 1
    top_scores[place], top_keys[place] = score, key
    return min(filled + 1, count)


@njit
def _take_top(scores, first, peaks, peak, top_scores, top_keys, filled):
    """Merge the largest of these scores into the sorted list of the largest so far; ties go to the lower key.

    ``peaks`` are the groups' peaks and ``peak`` the largest of them; ``filled`` is how many the list holds, before and
    after. Few scores are more than the groups' peaks say the least of the largest can be.
    """
    count = top_scores.size
    least = max(_least_of_top(peaks, peak, count), top_scores[count - 1])
    whole = scores.size // _GROUPS * _GROUPS
    for start in range(0, whole, _GROUPS):
        found = _lanes_from(scores.ctypes.data + 4 * start, least)
        while found:
            j = start + _lowest_bit(found)
            found &= found - np.uint64(1)
            filled = _insert(scores[j], first + j, top_scores, top_keys, filled)
    for j in range(whole, scores.size):
        if scores[j] >= least:
            filled = _insert(scores[j], first + j, top_scores, top_keys, filled)
    return filled


@njit
def _adjusted(call, scores, b, h, i, first):
    """Softcap, bias and mask on a query's scores of the keys from ``first`` on."""
    if call.softcap:
        _cap(scores, call.softcap)
    if call.bias:
        place = b * call.bias_batch + h * call.bias_head + i * call.bias_query
        if call.bias_key:
            _add(scores, _floats(call.bias, place + first, scores.size))
        else:
            value = _floats(call.bias, place, 1)[0]
            for j in range(scores.size):
                scores[j] += value
    if call.mask:
        place = b * call.mask_batch + h * call.mask_head + i * call.mask_query
        if call.mask_key:
            _hide(scores, _booleans(call.mask, place + first, scores.size))
        elif not _booleans(call.mask, place, 1)[0]:
            _fill(scores, _NOTHING)


@njit
def _sum_of_nan(scores):
    """NaN if there is one among the scores, else 0."""
    found = np.float32(0.0)
    for j in range(scores.size):
        found = scores[j] if scores[j] != scores[j] else found
    return found


@njit
def _spans(call, b, h, start, rows, state):
    """The keys that each query sees, and that any of them sees."""
    (firsts, stops, peak, total, moment, filled, _, _) = state
    low, high = call.keys, 0
    for r in range(rows):
        place = b * call.span_batch + h * call.span_head + (start + r) * call.span_query
        firsts[r] = _integers(call.first, place, 1)[0]
        stops[r] = _integers(call.stop, place, 1)[0]
        peak[r], total[r], moment[r], filled[r] = _NOTHING, 0.0, 0.0, 0
        if firsts[r] < stops[r]:
            low, high = min(low, firsts[r]), max(high, stops[r])
    return low, max(low, high)


@njit
def _first_pass(call, b, h, start, rows, low, high, kept, state):
    """Statistics of rows, exponentials and output of the queries from ``start`` on, chunk by chunk of keys."""
    kv = h // call.group
    query = call.q + 4 * (b * call.q_batch + h * call.q_head + start * call.q_token)
    output = 0
    if call.output:
        output = call.output + 4 * (b * call.output_batch + h * call.output_head + start * call.output_token)
        for r in range(rows):
            _fill(_floats(output, r * call.output_token, call.value_dim), np.float32(0.0))
    for c in range((high - low + CHUNK - 1) // CHUNK):
        begin = low + c * CHUNK
        width = min(high - begin, CHUNK)
        tile = kept + 4 * (c * ROWS * CHUNK if call.kept else 0)
        key = call.k + 4 * (b * call.k_batch + kv * call.k_head + begin * call.k_token)
        _product(
            call.sgemm, np.int32(1), np.int32(width), np.int32(rows), np.int32(call.dim), np.float32(call.scale),
            key, np.int32(call.k_token), query, np.int32(call.q_token), np.float32(0.0), tile, np.int32(CHUNK),
        )  # fmt: skip
        for r in range(rows):
            row = _floats(tile, r * CHUNK, width)
            factor = _row_of_chunk(call, b, h, start, r, row, begin, c if call.kept else 0, state)
            if output and c and factor != _ONE:
                _scale(_floats(output, r * call.output_token, call.value_dim), factor)
        if output:
            value = call.v + 4 * (b * call.v_batch + kv * call.v_head + begin * call.v_token)
            _product(
                call.sgemm, np.int32(0), np.int32(call.value_dim), np.int32(rows), np.int32(width), _ONE,
                value, np.int32(call.v_token), tile, np.int32(CHUNK), _ONE, output, np.int32(call.output_token),
            )  # fmt: skip


@njit
def _row_of_chunk(call, b, h, start, r, row, begin, c, state):
    """Turn one query's scores of a chunk into exponentials; by what the sums and the output so far shrink."""
    (firsts, stops, peak, total, moment, filled, chunk_peaks, peaks) = state
    left = min(max(firsts[r] - begin, 0), row.size)
    right = max(min(stops[r] - begin, row.size), left)
    _fill(row[:left], np.float32(0.0))
    _fill(row[right:], np.float32(0.0))
    chunk_peaks[c, r] = _NOTHING
    if left == right:
        return _ONE
    scores = row[left:right]
    _adjusted(call, scores, b, h, start + r, begin + left)
    if call.top:
        highest = _group_peaks(scores, peaks)
        place = ((b * call.heads + h) * call.queries + start + r) * call.top_count
        top_scores = _floats(call.top, place, call.top_count)
        if highest > top_scores[call.top_count - 1]:
            top_keys = _integers(call.top_keys, place, call.top_count)
            filled[r] = _take_top(scores, begin + left, peaks, highest, top_scores, top_keys, filled[r])
    else:
        highest = _largest(scores)
    factor = _ONE
    if highest > peak[r]:
        # what was gathered so far was relative to a smaller peak
        shift = float(peak[r]) - float(highest)
        shrunk = math.exp(shift)
        moment[r] = shrunk * (moment[r] + shift * total[r]) if shrunk else 0.0 * moment[r]
        total[r] *= shrunk
        peak[r], factor = highest, np.float32(shrunk)
    if peak[r] == _NOTHING:
        # hidden so far; a NaN among them must not be lost
        moment[r] += 0.0 * _sum_of_nan(scores)
        _fill(scores, np.float32(0.0))
        return factor
    sums = _exponentials(scores, peak[r])
    total[r] += sums[0]
    moment[r] += sums[1]
    chunk_peaks[c, r] = peak[r]
    return factor


@njit
def _finish_rows(call, b, h, start, rows, state):
    """The statistics of rows, from what the first pass gathered.

    What the second pass needs takes the place of that: the weight of a score s is exp(s - moment) · total.
    """
    (_, _, peak, total, moment, filled, _, _) = state
    row = (b * call.heads + h) * call.queries + start
    lse, peaks = _floats(call.lse, row, rows), _floats(call.peak, row, rows)
    entropy, sinks = _floats(call.entropy, row, rows), _floats(call.sink, row, rows)
    for r in range(rows):
        if moment[r] != moment[r] or peak[r] == np.float32(np.inf):
            _integers(call.flag, 0, 1)[0] = 1
        highest = float(peak[r])
        ceiling, sink = highest, -math.inf
        if call.sinks:
            sink = float(_floats(call.sinks, h, 1)[0])
            ceiling = max(highest, sink)
        if ceiling == -math.inf:
            ceiling = 0.0
        seen, sunk = math.exp(highest - ceiling), math.exp(sink - ceiling)
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
            top = _floats(call.top, (row + r) * call.top_count, call.top_count)
            for i in range(filled[r]):
                top[i] = math.exp(float(top[i]) - ceiling) * share
            _fill(top[filled[r] :], np.float32(0.0))
        if call.output:
            place = b * call.output_batch + h * call.output_head + (start + r) * call.output_token
            _scale(_floats(call.output, place, call.value_dim), np.float32(seen * share))
        total[r], moment[r] = share, ceiling


@njit
def _add_by_distance(call, head, strand, place, row, left, right, factor):
    """Weights by distance: of a query at ``place``, counted from the chunk's first key."""
    mass = _doubles(call.offsets, (head * call.strands + strand) * call.bins, call.bins)
    edges = _integers(call.edges, 0, call.bins + 1)
    for x in range(call.bins):
        # distance d is key place - d
        near, far = min(place - edges[x] + 1, right), max(place - edges[x + 1] + 1, left)
        if far < near:
            mass[x] += factor * _sum(row[far:near])


@njit
def _add_to_blocks(call, head, piece, begin, row, left, right, factor):
    place = (head * call.pieces + piece) * call.across
    cells = _doubles(call.blocks, place, call.across)
    cell = (begin + left) // call.block_width
    while cell * call.block_width < begin + right:
        near = max(cell * call.block_width - begin, left)
        far = min((cell + 1) * call.block_width - begin, right)
        cells[cell] += factor * _sum(row[near:far])
        if call.block_peaks:
            peaks = _floats(call.block_peaks, place + cell, 1)
            peaks[0] = max(peaks[0], factor * _largest(row[near:far]))
        cell += 1


@njit
def _keep_weights(call, b, h, i, begin, row, left, right, factor):
    """Whole rows, whole columns, all weights, and their mean over heads."""
    used, query = row[left:right], (b * call.heads + h) * call.queries + i
    if call.rows:
        slot = _integers(call.row_slots, i, 1)[0]
        if slot >= 0:
            place = ((b * call.heads + h) * call.row_count + slot) * call.keys + begin + left
            _scaled(_floats(call.rows, place, used.size), used, factor)
    if call.columns:
        columns = _integers(call.column_keys, 0, call.column_count)
        answers = _floats(call.columns, query * call.column_count, call.column_count)
        for x in range(call.column_count):
            j = columns[x] - begin
            if left <= j < right:
                answers[x] = factor * row[j]
    if call.each:
        place = ((b * call.heads + h) * call.each_count + i - call.each_first) * call.keys + begin + left
        _scaled(_floats(call.each, place, used.size), used, factor)
    if call.mean:
        place = (b * call.queries + i) * call.keys + begin + left
        _add_scaled(_floats(call.mean, place, used.size), used, factor / np.float32(call.heads))


@njit
def _second_pass(call, b, h, job, strand, start, rows, low, high, kept, state, sums):
    """Statistics of keys, from the exponentials of the first pass and the log-sum-exp of each row."""
    (firsts, stops, _, share, ceiling, _, chunk_peaks, _) = state
    head = b * call.heads + h
    for c in range((high - low + CHUNK - 1) // CHUNK):
        begin = low + c * CHUNK
        width = min(high - begin, CHUNK)
        _fill(sums, np.float32(0.0))
        for r in range(rows):
            left = min(max(firsts[r] - begin, 0), width)
            right = max(min(stops[r] - begin, width), left)
            if left == right or chunk_peaks[c, r] == _NOTHING:
                continue
            factor = np.float32(math.exp(float(chunk_peaks[c, r]) - ceiling[r]) * share[r])
            row, i = _floats(kept, (c * ROWS + r) * CHUNK, width), start + r
            if call.received:
                _add_scaled(sums[left:right], row[left:right], factor)
            if call.offsets:
                place = _integers(call.places, i, 1)[0] - begin
                _add_by_distance(call, head, strand, place, row, left, right, factor)
            if call.blocks:
                piece = i // call.block_height if call.whole_blocks else call.first_job + job
                _add_to_blocks(call, head, piece, begin, row, left, right, factor)
            _keep_weights(call, b, h, i, begin, row, left, right, factor)
        if call.received:
            total = _doubles(call.received, (head * call.strands + strand) * call.keys + begin, width)
            for j in range(width):
                total[j] += sums[j]


def _kept_on_disk(function):
    """Compile what threads call, or load what an earlier process compiled, where there is a folder to keep it in."""
    signature = types.void(types.CPointer(from_dtype(CALL)))
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return cfunc(signature)(function)


@_kept_on_disk
def work(pointer):
    """What each thread runs: units of work, one after the other, until none is left.

    A unit is a strand of one head (or of all heads of a sequence): jobs ``strand``, ``strand + strands``, ... in this
    order, whichever thread takes it, so that sums have the same bits with any number of threads.
    """
    call = carray(pointer, 1)[0]
    kept = call.scratch + 4 * call.scratch_floats * _take(call.taken + 8)
    chunks = (call.keys + CHUNK - 1) // CHUNK if call.kept else 1
    state = (
        np.empty(ROWS, np.int64),
        np.empty(ROWS, np.int64),
        np.empty(ROWS, np.float32),
        np.empty(ROWS, np.float64),
        np.empty(ROWS, np.float64),
        np.empty(ROWS, np.int64),
        np.empty((max(chunks, 1), ROWS), np.float32),
        np.empty(_GROUPS, np.float32),
    )
    sums = np.empty(CHUNK, np.float32)
    starts = _integers(call.starts, 0, call.jobs + 1)
    sets = 1 if call.together else call.heads
    while True:
        unit = _take(call.taken)
        if unit >= call.batch * sets * call.strands:
            break
        strand, place = unit % call.strands, unit // call.strands
        b, one = place // sets, place % sets
        for job in range(strand, call.jobs, call.strands):
            start, rows = starts[job], starts[job + 1] - starts[job]
            for h in range(0 if call.together else one, call.heads if call.together else one + 1):
                low, high = _spans(call, b, h, start, rows, state)
                _first_pass(call, b, h, start, rows, low, high, kept, state)
                _finish_rows(call, b, h, start, rows, state)
                if call.kept:
                    _second_pass(call, b, h, job, strand, start, rows, low, high, kept, state, sums)
