"""The largest scores of a row, found chunk by chunk."""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from multihead.kernels.native.compiled.arithmetic import NOTHING, fill, floats, larger, short_integers, spread
from multihead.kernels.native.compiled.inner import inner

GROUPS = 64
"""Interleaved groups of keys, of which the largest score is kept while the largest of all are looked for."""

FEW = 16
"""Scores that are sorted together; groups among which the least of half as many is looked for."""


class Search(NamedTuple):
    """Addresses of what is kept while the largest scores of a row are looked for."""

    peaks: int
    """Of each group."""
    scores: int
    """A sorted list of FEW."""
    keys: int


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
def group_peaks(scores, search):
    """Find the largest score of each group, group g holding the scores g, g + 64, ...; the largest of all."""
    peaks = floats(search.peaks, 0, GROUPS)
    fill(peaks, NOTHING)
    whole = scores.size // GROUPS * GROUPS
    _raise_lanes(search.peaks, scores.ctypes.data, whole // GROUPS)
    for j in range(whole, scores.size):
        peaks[j - whole] = larger(scores[j], peaks[j - whole])
    return _highest_lane(search.peaks)


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


_LIST, _KEYS = ir.VectorType(ir.FloatType(), FEW), ir.VectorType(ir.IntType(32), FEW)
_SHORT, _LONG, _WORD = ir.IntType(32), ir.IntType(64), ir.IntType(GROUPS)


def _inserted(builder, known, score, key):
    """A sorted list of FEW, and their keys, with one more score behind those that are no smaller."""
    scores, keys = known
    shift = ir.Constant(_KEYS, [FEW, *range(FEW - 1)])
    new, new_key = spread(builder, score, _LIST), spread(builder, key, _KEYS)
    before = builder.shuffle_vector(scores, ir.Constant(_LIST, [float("inf")] * FEW), shift)
    keys_before = builder.shuffle_vector(keys, keys, shift)
    stays, follows = builder.fcmp_ordered(">=", scores, new), builder.fcmp_ordered(">=", before, new)
    return (
        builder.select(stays, scores, builder.select(follows, new, before)),
        builder.select(stays, keys, builder.select(follows, new_key, keys_before)),
    )


def _successor(builder, score):
    """The next larger number; that of infinity is none."""
    bits = builder.bitcast(builder.fadd(score, ir.FloatType()(0.0)), _SHORT)
    one = builder.select(builder.icmp_signed(">=", bits, _SHORT(0)), _SHORT(1), _SHORT(-1))
    return builder.bitcast(builder.add(bits, one), ir.FloatType())


@intrinsic
def _insert_groups(typingctx, scores, groups, first, least, count, held, top_scores, top_keys):
    """Put the scores of whole groups that are no less into a sorted list of FEW: into an empty one unless it is held.

    Where more than FEW have come, only what is larger than the last of ``count`` follows: many may be equal.
    """

    def codegen(context, builder, signature, values):
        scores, groups, first, least, count, held, *lists = values
        lists = [
            builder.inttoptr(address, kind.as_pointer()) for address, kind in zip(lists, (_LIST, _KEYS), strict=True)
        ]
        numbers, first = builder.inttoptr(scores, ir.FloatType().as_pointer()), builder.trunc(first, _SHORT)
        names = ("load", "groups", "group", "score", "grown", "full", "next", "end")
        load, begin, group, one, grown, full, following, end = (builder.append_basic_block(name) for name in names)
        empty = [ir.Constant(_LIST, [float("-inf")] * FEW), ir.Constant(_KEYS, [-1] * FEW)]
        start = builder.block
        builder.cbranch(builder.icmp_signed("!=", held, _LONG(0)), load, begin)

        def joined(kinds, *incoming):
            phis = [builder.phi(kind) for kind in kinds]
            for block, given in incoming:
                for phi, value in zip(phis, given, strict=True):
                    phi.add_incoming(value, block)
            return phis

        builder.position_at_end(load)
        loaded = [builder.load(address, align=4) for address in lists]
        builder.branch(begin)

        builder.position_at_end(begin)
        known = joined((_LIST, _KEYS), (start, empty), (load, loaded))
        builder.cbranch(builder.icmp_signed(">", groups, _LONG(0)), group, end)

        builder.position_at_end(group)
        state = joined((_LONG, _LONG, ir.FloatType(), _LIST, _KEYS), (begin, (_LONG(0), _LONG(0), least, *known)))
        place, taken, bound, *before = state
        lane = builder.mul(place, _LONG(GROUPS))
        lanes = _lanes(builder, builder.add(scores, builder.mul(lane, _LONG(4))))
        found = builder.bitcast(builder.fcmp_ordered(">=", lanes, spread(builder, bound, lanes.type)), _WORD)
        builder.cbranch(builder.icmp_unsigned("!=", found, _WORD(0)), one, following)

        builder.position_at_end(one)
        left, *shorter = joined((_WORD, _LIST, _KEYS), (group, (found, *before)))
        key = builder.add(lane, builder.cttz(left, ir.IntType(1)(1)))
        score = builder.load(builder.gep(numbers, [key]))
        longer = _inserted(builder, shorter, score, builder.add(first, builder.trunc(key, _SHORT)))
        fewer = builder.and_(left, builder.sub(left, _WORD(1)))
        for phi, value in zip((left, *shorter), (fewer, *longer), strict=True):
            phi.add_incoming(value, one)
        builder.cbranch(builder.icmp_unsigned("!=", fewer, _WORD(0)), one, grown)

        builder.position_at_end(grown)
        more = builder.add(taken, builder.ctpop(found))
        builder.cbranch(builder.icmp_signed(">", more, _LONG(FEW)), full, following)

        builder.position_at_end(full)
        raised = _successor(builder, builder.extract_element(longer[0], builder.sub(count, _LONG(1))))
        builder.branch(following)

        builder.position_at_end(following)
        state_after = joined(
            (_LONG, ir.FloatType(), _LIST, _KEYS),
            (group, (taken, bound, *before)),
            (grown, (more, bound, *longer)),
            (full, (more, raised, *longer)),
        )
        then = builder.add(place, _LONG(1))
        for phi, value in zip(state, (then, *state_after), strict=True):
            phi.add_incoming(value, following)
        builder.cbranch(builder.icmp_signed("<", then, groups), group, end)

        builder.position_at_end(end)
        for address, value in zip(
            lists, joined((_LIST, _KEYS), (begin, known), (following, state_after[2:])), strict=True
        ):
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(whole, whole, whole, types.float32, *[whole] * 4), codegen


@inner
def _least_of_top(peaks, peak, count):
    """A score that at least ``count`` scores reach: the peak that so many groups reach. The peaks are used up."""
    while peak > NOTHING:
        count -= _drop_lanes(peaks, peak)
        if count <= 0:
            break
        peak = _highest_lane(peaks)
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
def take_top(scores, first, peak, top_scores, top_keys, filled, search):
    """Merge the largest of these scores into the sorted list of the largest so far; ties go to the lower key.

    The groups' peaks have been found, and ``peak`` is the largest of them; ``filled`` is how many scores the list
    holds, before and after. Few scores are more than the groups' peaks say the least of the largest can be.
    """
    count = top_scores.size
    few = 2 * count <= FEW
    reached = _reached(search.peaks, count) if few else _least_of_top(search.peaks, peak, count)
    least = max(reached, top_scores[count - 1])
    start = 0
    if few:
        groups = scores.size // GROUPS
        few_scores, few_keys = floats(search.scores, 0, FEW), short_integers(search.keys, 0, FEW)
        if filled:
            fill(few_scores, NOTHING)
            for i in range(count):
                few_scores[i], few_keys[i] = top_scores[i], top_keys[i]
        _insert_groups(scores.ctypes.data, groups, first, least, count, filled, search.scores, search.keys)
        for i in range(count):
            top_scores[i], top_keys[i] = few_scores[i], few_keys[i]
        start, filled = groups * GROUPS, count
    for place in range(start, scores.size, GROUPS):
        found = _from(scores, place, least)
        while found:
            j = place + _lowest_bit(found)
            found &= found - np.uint64(1)
            filled = _insert(scores[j], first + j, top_scores, top_keys, filled)
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
