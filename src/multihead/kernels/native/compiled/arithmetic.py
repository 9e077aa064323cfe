"""What compiled code does with numbers in memory: where they are, exponentials, sums, and rows of them at once."""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, register_jitable

from multihead.kernels.native.compiled.inner import inner, relaxed

SUMS = {"contract", "reassoc", "nsz"}
"""Sums may be reordered, so that they run in vector registers; NaN and inf keep their meaning."""

NOTHING = np.float32(-np.inf)
_SMALLEST = np.float32(-87.0)
"""Below it, exponentials are taken for 0: they are less than the smallest normal number."""


@register_jitable
def padded(size, unit):
    """The least multiple of a unit that is no less."""
    return (size + unit - 1) // unit * unit


@intrinsic
def take(typingctx, address):
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
_to_short_integers = _pointer_to(types.int32)
_to_booleans = _pointer_to(types.uint8)


@inner
def floats(address, place, count):
    """So many 32-bit numbers of memory, ``place`` numbers behind an address."""
    return carray(_to_floats(address + 4 * place), count)


@inner
def doubles(address, place, count):
    """As ``floats``, of 64 bits."""
    return carray(_to_doubles(address + 8 * place), count)


@inner
def integers(address, place, count):
    """As ``floats``: whole numbers of 64 bits."""
    return carray(_to_integers(address + 8 * place), count)


@inner
def short_integers(address, place, count):
    """As ``floats``: whole numbers of 32 bits."""
    return carray(_to_short_integers(address + 4 * place), count)


@inner
def booleans(address, place, count):
    """As ``floats``: one byte each."""
    return carray(_to_booleans(address + place), count)


@intrinsic
def larger(typingctx, a, b):
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
ZERO, ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)


@relaxed({"contract"})
def exp(x):
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
    p = p * (r * r) + r + ONE
    return _number(_bits(p) + (n << np.int32(23)))


@relaxed({"contract"})
def tanh(x):
    """Hyperbolic tangent; Cephes' tanhf (Moshier 1989): a polynomial for small numbers, else by exp."""
    size = abs(x)
    limited = np.float32(9.0) if size > np.float32(9.0) else size
    large = ONE - _TWO / (exp(limited + limited) + ONE)
    z = x * x
    p = _TANH[0] * z + _TANH[1]
    p = p * z + _TANH[2]
    p = p * z + _TANH[3]
    p = p * z + _TANH[4]
    small = p * z * x + x
    signed = -large if x < np.float32(0.0) else large
    # NaN is neither
    return signed if size >= np.float32(0.625) else small


@relaxed({"contract"})
def cap(scores, softcap):
    """In place of each score s: c · tanh(s / c)."""
    inverse = np.float32(1.0 / softcap)
    cap = np.float32(softcap)
    for j in range(scores.size):
        scores[j] = cap * tanh(scores[j] * inverse)


@inner
def add(scores, bias):
    """Add a bias to each score."""
    for j in range(scores.size):
        scores[j] += bias[j]


@inner
def hide(scores, allowed):
    """-inf in place of each score that is not allowed."""
    for j in range(scores.size):
        scores[j] = scores[j] if allowed[j] else NOTHING


@inner
def fill(numbers, value):
    """One value everywhere."""
    for j in range(numbers.size):
        numbers[j] = value


@inner
def largest(scores):
    """The largest score."""
    found = NOTHING
    for j in range(scores.size):
        found = larger(scores[j], found)
    return found


@relaxed(SUMS)
def exponentials(scores, peak):
    """exp(s - peak) in place of each score; Σ of them, and Σ (s - peak) exp(s - peak)."""
    total, moment = np.float32(0.0), np.float32(0.0)
    for j in range(scores.size):
        shifted = scores[j] - peak
        # NaN is not less than anything, and stays
        hidden = shifted < _SMALLEST
        shifted = _SMALLEST if hidden else shifted
        e = exp(shifted)
        e = np.float32(0.0) if hidden else e
        scores[j] = e
        total += e
        moment += e * shifted
    return total, moment


@relaxed({"contract"})
def to_weights(scores, ceiling, share):
    """exp(s - ceiling) · share in place of each score."""
    for j in range(scores.size):
        shifted = scores[j] - ceiling
        hidden = shifted < _SMALLEST
        e = exp(_SMALLEST if hidden else shifted) * share
        scores[j] = np.float32(0.0) if hidden else e


@relaxed(SUMS)
def total_of(numbers):
    """The sum."""
    total = np.float32(0.0)
    for j in range(numbers.size):
        total += numbers[j]
    return total


@relaxed({"contract"})
def add_scaled(total, numbers, factor):
    """Add a multiple of numbers to others."""
    for j in range(numbers.size):
        total[j] += factor * numbers[j]


@inner
def scaled(target, numbers, factor):
    """A multiple of numbers."""
    for j in range(numbers.size):
        target[j] = factor * numbers[j]


@relaxed(SUMS)
def scaled_and_checked(target, numbers, factor):
    """As ``scaled``; 0, or NaN where a result is NaN or infinite."""
    found = np.float32(0.0)
    for j in range(numbers.size):
        scaled = factor * numbers[j]
        target[j] = scaled
        found += np.float32(0.0) * scaled
    return found


@inner
def scale_by(numbers, factor):
    """Each number times a factor."""
    for j in range(numbers.size):
        numbers[j] *= factor


@inner
def sum_of_nan(scores):
    """NaN if there is one among the scores, else 0."""
    found = np.float32(0.0)
    for j in range(scores.size):
        found = scores[j] if scores[j] != scores[j] else found
    return found


def spread(builder, number, lanes):
    """A number in every lane."""
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), number, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), everywhere)
