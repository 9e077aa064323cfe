"""The largest scores of a row, found chunk by chunk."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from multihead.kernels.native.compiled.arithmetic import NOTHING, fill, larger, spread
from multihead.kernels.native.compiled.inner import inner

GROUPS = 64
"""Interleaved groups of keys, of which the largest score is kept while the largest of all are looked for."""

FEW = 16
"""Scores of a list that is kept in vector registers; groups among which the least of so few is looked for."""


def _lanes(builder, address):
    """The numbers of all groups at an address, as one vector."""
    vector = ir.VectorType(ir.FloatType(), GROUPS)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=4)


@intrinsic
def _raise_lanes(typingctx, peaks, scores, count):
    """Each peak, or the largest of the scores of its group if that is larger: ``count`` times so many scores."""

    def codegen(context, builder, signature, values):
        peaks, scores, count = values
        long, flags = ir.IntType(64), ("nnan", "nsz")
        known = _lanes(builder, peaks)
        before = builder.block
        loop, after = (builder.append_basic_block(name) for name in ("loop", "after"))
        builder.cbranch(builder.icmp_signed(">", count, long(0)), loop, after)
        builder.position_at_end(loop)
        place, largest = builder.phi(long), builder.phi(known.type)
        new = _lanes(builder, builder.add(scores, builder.mul(place, long(4 * GROUPS))))
        raised = builder.select(builder.fcmp_ordered(">", new, largest, flags=flags), new, largest, flags=flags)
        following = builder.add(place, long(1))
        for phi, start, then in ((place, long(0), following), (largest, known, raised)):
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        found = builder.phi(known.type)
        found.add_incoming(known, before)
        found.add_incoming(raised, loop)
        builder.store(found, builder.inttoptr(peaks, found.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _highest_lane(typingctx, peaks):
    """The largest peak."""

    def codegen(context, builder, signature, values):
        lanes = _lanes(builder, values[0])
        kind = ir.FunctionType(ir.FloatType(), [lanes.type])
        name = f"llvm.vector.reduce.fmax.v{GROUPS}f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [lanes], fastmath=("nnan", "nsz"))

    return types.float32(types.int64), codegen


@intrinsic
def _lanes_from(typingctx, scores, least):
    """Which of so many scores are no less: bit g stands for the score g."""

    def codegen(context, builder, signature, values):
        lanes = _lanes(builder, values[0])
        found = builder.fcmp_ordered(">=", lanes, spread(builder, values[1], lanes.type))
        return builder.bitcast(found, ir.IntType(GROUPS))

    return types.uint64(types.int64, types.float32), codegen


@intrinsic
def _drop_lanes(typingctx, peaks, peak):
    """How many groups have this peak; they lose it."""

    def codegen(context, builder, signature, values):
        lanes = _lanes(builder, values[0])
        found = builder.fcmp_ordered("==", lanes, spread(builder, values[1], lanes.type))
        nothing = ir.Constant(lanes.type, [float("-inf")] * GROUPS)
        kept = builder.select(found, nothing, lanes)
        builder.store(kept, builder.inttoptr(values[0], lanes.type.as_pointer()), align=4)
        return builder.ctpop(builder.bitcast(found, ir.IntType(GROUPS)))

    return types.int64(types.int64, types.float32), codegen


@intrinsic
def _lowest_bit(typingctx, bits):
    def codegen(context, builder, signature, values):
        return builder.cttz(values[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@inner
def group_peaks(scores, peaks):
    """The largest score of each group, group g holding the scores g, g + 64, ..., and the largest of all."""
    fill(peaks, NOTHING)
    whole = scores.size // GROUPS * GROUPS
    _raise_lanes(peaks.ctypes.data, scores.ctypes.data, whole // GROUPS)
    for j in range(whole, scores.size):
        peaks[j - whole] = larger(scores[j], peaks[j - whole])
    return _highest_lane(peaks.ctypes.data)


@intrinsic
def _reached(typingctx, peaks, count):
    """The largest number that at least so many of FEW groups reach, each being some of the groups of the peaks."""

    def codegen(context, builder, signature, values):
        peaks = _lanes(builder, values[0])
        few = ir.VectorType(ir.FloatType(), FEW)
        whole = ir.VectorType(ir.IntType(32), FEW)
        flags = ("nnan", "nsz")

        def chosen(order, lanes):
            return builder.shuffle_vector(lanes, lanes, ir.Constant(whole, [*order]))

        parts = [chosen(range(first, first + FEW), peaks) for first in range(0, GROUPS, FEW)]
        found = parts[0]
        for part in parts[1:]:
            found = builder.select(builder.fcmp_ordered(">", part, found, flags=flags), part, found, flags=flags)
        larger = ir.Constant(whole, [0] * FEW)
        for turn in range(1, FEW):
            turned = chosen(((lane + turn) % FEW for lane in range(FEW)), found)
            larger = builder.add(larger, builder.zext(builder.fcmp_ordered(">", turned, found), whole))
        counts = spread(builder, builder.trunc(values[1], ir.IntType(32)), whole)
        nothing = ir.Constant(few, [float("inf")] * FEW)
        reached = builder.select(builder.icmp_signed("<", larger, counts), found, nothing)
        kind = ir.FunctionType(ir.FloatType(), [few])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmin.v{FEW}f32")
        return builder.call(reduce, [reached], fastmath=("nnan", "nsz"))

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def _insert_lanes(typingctx, scores, keys, score, key):
    """Put a score into a sorted list of FEW, behind those that are no smaller; its key beside the others' keys."""

    def codegen(context, builder, signature, values):
        few, whole = ir.VectorType(ir.FloatType(), FEW), ir.VectorType(ir.IntType(32), FEW)
        scores, keys = (
            builder.inttoptr(address, kind.as_pointer()) for address, kind in zip(values, (few, whole), strict=False)
        )
        known, known_keys = builder.load(scores, align=4), builder.load(keys, align=4)
        shift = ir.Constant(whole, [FEW, *range(FEW - 1)])
        new, new_key = (
            spread(builder, values[2], few),
            spread(builder, builder.trunc(values[3], ir.IntType(32)), whole),
        )
        before = builder.shuffle_vector(known, ir.Constant(few, [float("inf")] * FEW), shift)
        keys_before = builder.shuffle_vector(known_keys, known_keys, shift)
        stays, follows = builder.fcmp_ordered(">=", known, new), builder.fcmp_ordered(">=", before, new)
        builder.store(builder.select(stays, known, builder.select(follows, new, before)), scores, align=4)
        builder.store(builder.select(stays, known_keys, builder.select(follows, new_key, keys_before)), keys, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), codegen


@inner
def _least_of_top(peaks, peak, count):
    """A score that at least ``count`` scores reach: the peak that so many groups reach. The peaks are used up."""
    while peak > NOTHING:
        count -= _drop_lanes(peaks.ctypes.data, peak)
        if count <= 0:
            break
        peak = _highest_lane(peaks.ctypes.data)
    return peak


@inner
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


@inner
def take_top(scores, first, peaks, peak, top_scores, top_keys, filled, few_scores, few_keys):
    """Merge the largest of these scores into the sorted list of the largest so far; ties go to the lower key.

    ``peaks`` are the groups' peaks and ``peak`` the largest of them; ``filled`` is how many a list holds that is too
    long for vector registers, before and after. Few scores are more than the groups' peaks say the least of the
    largest can be.
    """
    count = top_scores.size
    few = 2 * count <= FEW
    if few:
        fill(few_scores, NOTHING)
        for i in range(count):
            few_scores[i], few_keys[i] = top_scores[i], top_keys[i]
    least = _reached(peaks.ctypes.data, count) if few else _least_of_top(peaks, peak, count)
    least, inserted = max(least, top_scores[count - 1]), 0
    for start in range(0, scores.size, GROUPS):
        found = _from(scores, start, least)
        while found:
            j = start + _lowest_bit(found)
            found &= found - np.uint64(1)
            if not few:
                filled = _insert(scores[j], first + j, top_scores, top_keys, filled)
            elif inserted < FEW or scores[j] > few_scores[count - 1]:
                # comparing waits for what was stored last, which pays only where many scores are equal
                inserted += 1
                _insert_lanes(few_scores.ctypes.data, few_keys.ctypes.data, scores[j], first + j)
    if few:
        for i in range(count):
            top_scores[i], top_keys[i] = few_scores[i], few_keys[i]
    return filled


@inner
def _from(scores, start, least):
    """Which scores from ``start`` on are no less, as bits: as many as there are groups, or what is left."""
    if scores.size - start >= GROUPS:
        return _lanes_from(scores.ctypes.data + 4 * start, least)
    found = np.uint64(0)
    for j in range(start, scores.size):
        if scores[j] >= least:
            found |= np.uint64(1) << np.uint64(j - start)
    return found
