"""The page of 512 tokens × 72 heads. Targets: at most 8 MB, at most 2 s to write after the forward pass."""

import statistics
import tempfile
import time
from pathlib import Path

import multihead as mh
from benchmarks.measuring import table
from multihead.text import load_model, read
from multihead.view.page import write_page

TEXT = Path(mh.__file__).read_text() + Path(mh.masks.__file__).read_text()


def run() -> str:
    """The table."""
    model = load_model(None)
    recording = read(TEXT, model, truncate=True)
    seconds, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        for _ in range(5):
            start = time.perf_counter()
            write_page(recording, path)
            seconds.append(time.perf_counter() - start)
        size = path.stat().st_size
    heads = sum(len(layer.heads) for layer in recording)
    tokens = recording.layers[0].sizes.queries
    rows = [(tokens, heads, f"{size / 1e6:.2f} MB", f"{statistics.median(seconds):.2f} s")]
    note = "BertViz on the same kind of input, as measured when the project was planned: 867 MB, 43 s."
    return table("The page", ("tokens", "heads", "size", "median time to write"), rows, note)
