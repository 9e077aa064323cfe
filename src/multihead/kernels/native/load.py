"""The compiled code, when it is first needed."""

import logging
import time
from functools import cache
from types import ModuleType


@cache
def compiled_code() -> ModuleType | str:
    """The module ``compiled.work``, or why it cannot be had; says how long compiling took where it had to be done."""
    began = time.perf_counter()
    try:
        from multihead.kernels.native.compiled import work as compiled
    except ImportError as error:
        return f"Numba cannot be used: {error}"
    seconds = time.perf_counter() - began
    if not compiled.work.cache_hits:
        # logging shows a warning to who has not set it up; they have been waiting
        logging.getLogger("multihead").warning(
            "compiled the CPU kernel in %.1f s; it is kept for later processes where Numba finds a folder to write to "
            "(NUMBA_CACHE_DIR names one)",
            seconds,
        )
    return compiled


def loaded() -> ModuleType:
    """The module ``compiled.work``, where nothing refuses it."""
    code = compiled_code()
    assert not isinstance(code, str)  # noqa: S101  who asks has been refused otherwise
    return code
