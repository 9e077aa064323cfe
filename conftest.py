"""What running any test of this house needs, those in docstrings included."""

import sys

COMPILED = "multihead.kernels.native.compiled"

for finder in sys.meta_path:
    if type(finder).__name__ == "_JaxtypingFinder":
        # Numba compiles the functions as they are written, not what would check their shapes
        finder.should_instrument = lambda name, whole=finder.should_instrument: (
            not name.startswith(COMPILED) and whole(name)
        )
