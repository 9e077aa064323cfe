"""What the CPU kernel takes from torch's own libraries: its matrix product and its threads.

Both are looked up by their standard names, BLAS's ``sgemm_`` and GNU OpenMP's ``GOMP_parallel``, so that there is one
pool of threads and one library of matrix products in the process, and neither waits for the other.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Platform:
    """Addresses in torch's libraries."""

    sgemm: int
    parallel: ctypes._CFuncPtr

    def run(self, work: int, data: int, threads: int) -> None:
        """Let ``threads`` of torch's threads, the caller's among them, each call ``work(data)``, and wait for all."""
        self.parallel(work, data, threads, 0)


@cache
def platform() -> Platform | str:
    """Those of this process, or why they cannot be had."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return "torch's library is not where it stands on Linux"
    loaded = ctypes.CDLL(str(library))
    try:
        product, parallel = loaded.sgemm_, loaded.GOMP_parallel
    except AttributeError as error:
        return f"torch's library offers no {str(error).rpartition(' ')[2]}"
    product.restype = parallel.restype = None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    if not _multiplies(product):
        return "the matrix product in torch's library is of another kind"
    address = ctypes.cast(product, ctypes.c_void_p).value
    assert address is not None  # noqa: S101  it has just been called
    return Platform(address, parallel)


def _multiplies(product: ctypes._CFuncPtr) -> bool:
    """Whether it is the sgemm of 32-bit sizes that BLAS describes."""
    a, b = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1.0, -1.0, 2.0]] * 4)
    found = torch.full((4, 2), torch.nan)
    two, three, four = (ctypes.byref(ctypes.c_int(number)) for number in (2, 3, 4))
    one, zero = (ctypes.byref(ctypes.c_float(number)) for number in (1.0, 0.0))
    letters = ctypes.c_char_p(b"T"), ctypes.c_char_p(b"N")
    matrices = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, found)]
    product(*letters, two, four, three, one, matrices[0], three, matrices[1], three, zero, matrices[2], two)
    return torch.equal(found, b @ a.T)
