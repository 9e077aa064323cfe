"""What ``import multihead`` costs beside ``import torch``. Target: ≤ 1.15 ×."""

from benchmarks.measuring import seconds_of_processes, table


def run() -> str:
    """The table."""
    every_name = "import multihead\nfor name in multihead.__all__: getattr(multihead, name)"
    found = seconds_of_processes(
        {"import torch": "import torch", "import multihead": "import multihead", "... and all its names": every_name}
    )
    base = found["import torch"]
    rows = [(name, f"{seconds:.2f} s", f"{seconds / base:.3f} ×") for name, seconds in found.items()]
    return table("Importing", ("process", "median", "ratio"), rows)
