"""The compiled part of the CPU kernel: what one thread does with some rows of some heads.

For some queries of one head, chunk by chunk of keys: the scores by a matrix product, one pass that turns them into
exponentials and gathers the statistics of rows, the output by another product. The exponentials are relative to the
largest score *so far* (Milakov & Gimelshein 2018), so what was gathered before is rescaled when a larger one comes.
Where statistics of keys are asked for, the exponentials are kept until the log-sum-exp of their rows is known, and are
then turned into weights and summed in a second pass: no score is computed twice.

Everything here is plain data: addresses, strides in elements, sizes; ``record.CALL`` is the whole interface.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import carray, cfunc, from_dtype, types

from multihead.kernels.native import record
from multihead.kernels.native.compiled.arithmetic import ZERO, fill, floats, integers, take
from multihead.kernels.native.compiled.keys import second_pass
from multihead.kernels.native.compiled.room import floats_of, queries_at_once, rooms_of
from multihead.kernels.native.compiled.rows import begin_rows, finish_rows, first_pass

__all__ = ["floats_of", "work"]


def _sources() -> str:
    """A digest of all that is compiled."""
    files = [Path(record.__file__), *sorted(Path(__file__).parent.glob("*.py"))]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _kept_on_disk(function: Callable) -> Any:
    """Compile what threads call, or load what an earlier process compiled, where there is a folder to keep it in.

    Numba names what it keeps by the function, and looks at no other file: so the name says what is in them.
    """
    function.__qualname__ += f"_{_sources()[:16]}"
    signature = types.void(types.CPointer(from_dtype(record.CALL)))
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return cfunc(signature)(function)


@_kept_on_disk
def work(pointer):
    """What each thread runs: units of work, one after the other, until none is left.

    A unit is a strand of one head (or of all heads of a sequence): jobs ``strand``, ``strand + strands``, ... in
    this order, whichever thread takes it, so that sums have the same bits with any number of threads.
    """
    call = carray(pointer, 1)[0]
    room, state = rooms_of(call)
    starts = integers(call.starts, 0, call.jobs + 1)
    sets = 1 if call.together else call.heads
    most = queries_at_once(call.keys, call.kept)
    while True:
        unit = take(call.taken)
        if unit >= call.batch * sets * call.strands:
            break
        strand, place = unit % call.strands, unit // call.strands
        b, one = place // sets, place % sets
        for job in range(strand, call.jobs, call.strands):
            for h in range(0 if call.together else one, call.heads if call.together else one + 1):
                for start in range(starts[job], starts[job + 1], most):
                    rows = min(starts[job + 1] - start, most)
                    if call.mean and h == 0:
                        fill(floats(call.mean, (b * call.queries + start) * call.keys, rows * call.keys), ZERO)
                    low, high = begin_rows(call, b, h, start, rows, state)
                    first_pass(call, b, h, start, rows, low, high, room, state)
                    finish_rows(call, b, h, start, rows, room, state)
                    if call.kept:
                        second_pass(call, b, h, job, strand, start, rows, low, high, room, state)
