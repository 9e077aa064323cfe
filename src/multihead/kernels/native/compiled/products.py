"""Matrix products of tiles: packed operands, and sums that stay in vector registers.

As Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication": rows of one operand and columns of
the other are packed side by side, and a tile of their product is kept in registers while the summed axis runs. The
sizes of a tile are those of the processor that the code is compiled for.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from multihead.kernels.native.compiled.arithmetic import ZERO, fill, floats, padded, spread
from multihead.kernels.native.compiled.inner import inner
from multihead.kernels.native.record import CHUNK


def _vectors() -> tuple[int, int]:
    """Numbers in a vector register of the processor that Numba compiles for, and rows of a tile that they can hold."""
    chosen: str | None = vars(config)["CPU_FEATURES"]
    features = get_host_cpu_features() if chosen is None else chosen
    held = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if "avx512f" in held:
        return 16, 8
    if "avx" in held:
        return 8, 4
    return 4, 8 if "neon" in held else 4


LANES, TILE_ROWS = _vectors()
"""Numbers in a vector register, and queries of a tile of scores."""

TILE_KEYS = 2 * LANES
"""Keys of a tile of scores, and features of a tile of the output."""

LINE = CHUNK + TILE_KEYS
"""Numbers from one row of scores to the next: no power of two, so that the rows of a tile do not share cache lines."""


def _tile(vectors: int, *, a_step: int, a_row: int, b_step: int | None = None, adds: bool) -> Callable:
    """What multiplies a tile of matrices whose product stays in vector registers: C = A B, or C += A B.

    A has TILE_ROWS rows and B ``vectors`` · LANES columns; at least one number is summed.

    Args:
        vectors: of each row of C.
        a_step: bytes from one of the summed numbers of A to the next.
        a_row: bytes from one row of A to the next.
        b_step: bytes from one row of B to the next; None: they are given with each tile.
        adds: whether the product is added to what C holds.
    """
    lanes = ir.VectorType(ir.FloatType(), LANES)
    long = ir.IntType(64)

    @intrinsic
    def multiply(typingctx, count, a, b, b_next, c, c_row):
        def codegen(context, builder, signature, values):
            count, a, b, b_next, c, c_row = values
            b_next = b_next if b_step is None else long(b_step)

            def at(address, kind):
                return builder.inttoptr(address, kind.as_pointer())

            before = builder.block
            loop, after = (builder.append_basic_block(name) for name in ("loop", "after"))
            builder.branch(loop)
            builder.position_at_end(loop)
            place, from_a, from_b = (builder.phi(long) for _ in range(3))
            sums = [[builder.phi(lanes) for _ in range(vectors)] for _ in range(TILE_ROWS)]
            of_b = [builder.load(at(builder.add(from_b, long(4 * LANES * v)), lanes), align=4) for v in range(vectors)]
            found = []
            for row, known in enumerate(sums):
                number = builder.load(at(builder.add(from_a, long(a_row * row)), ir.FloatType()), align=4)
                everywhere = spread(builder, number, lanes)
                found.append(
                    [
                        builder.fadd(old, builder.fmul(everywhere, new, flags=("contract",)), flags=("contract",))
                        for old, new in zip(known, of_b, strict=True)
                    ]
                )
            following = builder.add(place, long(1))
            for phi, start, then in (
                (place, long(0), following),
                (from_a, a, builder.add(from_a, long(a_step))),
                (from_b, b, builder.add(from_b, b_next)),
            ):
                phi.add_incoming(start, before)
                phi.add_incoming(then, loop)
            zero = ir.Constant(lanes, [0.0] * LANES)
            for known, new in zip(sums, found, strict=True):
                for phi, then in zip(known, new, strict=True):
                    phi.add_incoming(zero, before)
                    phi.add_incoming(then, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            for row, new in enumerate(found):
                line = builder.add(c, builder.mul(c_row, long(row)))
                for v, product in enumerate(new):
                    target = at(builder.add(line, long(4 * LANES * v)), lanes)
                    result = builder.fadd(product, builder.load(target, align=4)) if adds else product
                    builder.store(result, target, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return multiply


score_tile = _tile(2, a_step=4 * TILE_ROWS, a_row=4, b_step=4 * TILE_KEYS, adds=False)
"""TILE_ROWS packed queries and TILE_KEYS packed keys: their scores."""

value_tile = _tile(2, a_step=4, a_row=4 * LINE, adds=True)
"""Rows of exponentials and TILE_KEYS features of the values: what is added to the output."""

narrow_value_tile = _tile(1, a_step=4, a_row=4 * LINE, adds=True)
"""As ``value_tile``, for LANES features."""


@inner
def pack_queries(call, b, h, start, rows, packed):
    """Queries times the scale, TILE_ROWS of them side by side: (tiles, dim, TILE_ROWS), zeros where there is none."""
    scale = np.float32(call.scale)
    for top in range(0, rows, TILE_ROWS):
        tile = floats(packed, top * call.dim, TILE_ROWS * call.dim)
        for m in range(TILE_ROWS):
            r = top + m
            if r < rows:
                query = floats(call.q, b * call.q_batch + h * call.q_head + (start + r) * call.q_token, call.dim)
                for d in range(call.dim):
                    tile[d * TILE_ROWS + m] = query[d] * scale
            else:
                for d in range(call.dim):
                    tile[d * TILE_ROWS + m] = ZERO


@intrinsic
def _transpose(typingctx, source, source_row, target, target_row):
    """LANES rows of LANES numbers become columns; the rows begin so many bytes after each other."""

    def codegen(context, builder, signature, values):
        source, source_row, target, target_row = values
        lanes, long = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)

        def at(address, step, row):
            return builder.inttoptr(builder.add(address, builder.mul(step, long(row))), lanes.as_pointer())

        def interleaved(a, b, first):
            order = [place for lane in range(first, first + LANES // 2) for place in (lane, LANES + lane)]
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))

        rows = [builder.load(at(source, source_row, row), align=4) for row in range(LANES)]
        for _ in range(LANES.bit_length() - 1):
            # a perfect shuffle, which doubles how many rows stand in one vector
            pairs = zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True)
            rows = [interleaved(a, b, first) for a, b in pairs for first in (0, LANES // 2)]
        for row, found in enumerate(rows):
            builder.store(found, at(target, target_row, row), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@inner
def pack_keys(call, b, kv, begin, width, packed):
    """Keys, TILE_KEYS of them side by side: (tiles, dim, TILE_KEYS), zeros where there is none."""
    keys = call.k + 4 * (b * call.k_batch + kv * call.k_head + begin * call.k_token)
    whole = call.dim // LANES * LANES
    for j in range(0, padded(width, TILE_KEYS), LANES):
        place = j // TILE_KEYS * TILE_KEYS * call.dim + j % TILE_KEYS
        row, rest = keys + 4 * j * call.k_token, 0
        if width - j >= LANES:
            rest = whole
            for d in range(0, whole, LANES):
                _transpose(row + 4 * d, 4 * call.k_token, packed + 4 * (place + d * TILE_KEYS), 4 * TILE_KEYS)
        for d in range(rest, call.dim):
            column = floats(packed, place + d * TILE_KEYS, LANES)
            for m in range(LANES):
                column[m] = floats(row, m * call.k_token + d, 1)[0] if j + m < width else ZERO


@inner
def pack_values(call, b, kv, begin, width, line, packed):
    """Values with zeros behind them: (width, line)."""
    for j in range(width):
        row = floats(packed, j * line, line)
        value = floats(call.v, b * call.v_batch + kv * call.v_head + (begin + j) * call.v_token, call.value_dim)
        for d in range(call.value_dim):
            row[d] = value[d]
        fill(row[call.value_dim :], ZERO)
