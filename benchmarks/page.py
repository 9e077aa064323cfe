"""The page of 512 tokens × 72 heads.

Targets: at most 8 MB, at most 2 s to write after the forward pass, first picture in Chromium within 1 s of load.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks.measuring import table
from multihead.text import load_model, read
from multihead.view.page import write_page

ROUNDS = 7
TEXT = topics["naming"]
"""A chapter of Python's own documentation, which comes with it."""


def first_pictures(path: Path) -> list[float]:
    """Milliseconds from the start of the navigation to the first complete picture, in fresh tabs."""
    from playwright.sync_api import sync_playwright

    found = []
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            tab = browser.new_context(offline=True).new_page()
            tab.goto(path.as_uri())
            tab.evaluate("multihead.ready")
            found.append(tab.evaluate("performance.getEntriesByName('multihead-first-picture')[0].startTime"))
            tab.context.close()
        browser.close()
    return found


def run() -> str:
    """The table."""
    recording = read(TEXT, load_model(None), truncate=True)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        for _ in range(ROUNDS):
            start = time.perf_counter()
            write_page(recording, path)
            seconds.append(time.perf_counter() - start)
        size = path.stat().st_size
        pictures = first_pictures(path)
    heads = sum(len(layer.heads) for layer in recording)
    tokens = recording.layers[0].sizes.queries
    row = (
        tokens,
        heads,
        f"{size / 1e6:.2f} MB",
        f"{statistics.median(seconds):.2f} s",
        f"{statistics.median(pictures) / 1000:.2f} s ({min(pictures) / 1000:.2f} to {max(pictures) / 1000:.2f})",
    )
    head = ("tokens", "heads", "size", "median time to write", "first picture after load")
    return table("The page", head, [row], "BertViz on the same sizes, measured once on two cores: 867 MB, 43 s.")
