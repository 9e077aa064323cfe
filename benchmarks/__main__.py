"""Run benchmarks by name, or all of them."""

import importlib
import sys

NAMES = ("importing", "layer", "decoding", "lens", "observing", "page", "view")


def main(names: list[str]) -> None:
    """Print each benchmark's tables."""
    for name in names or NAMES:
        if name not in NAMES:
            sys.exit(f"{name} is no benchmark: choose from {', '.join(NAMES)}.")
        print(importlib.import_module(f"benchmarks.{name}").run(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
