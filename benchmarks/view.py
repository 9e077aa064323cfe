"""The picture: a page of 512 tokens, a page of 8,192, and a server of 131,072.

Targets: 512 tokens × 72 heads: page at most 6 MB, written in 1 s, first picture within 0.7 s, another head in
100 ms. 8,192 × 12: at most 64 MB, no frame beyond 50 ms while zooming, sharp within 300 ms. 131,072 × 8: written in
1.3 × the lens's own time, server ready in 1 s, first picture within 1.5 s, a tile in 60 ms (median) and 250 ms (95 of
100), at most 1.5 GB. Every number checked against float64 before a time is printed.
"""

import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

import multihead as mh
from benchmarks.measuring import table
from multihead.recording.maps import map_block
from multihead.text import load_model, read
from multihead.view.page import write_page

ROUNDS = 5
TILES = 500
CHECKED = 200
SHORT = topics["naming"]
"""A chapter of Python's own documentation, which comes with it."""


class Attention(torch.nn.Module):
    """A model of one causal attention, which has nothing to learn."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(1, H, L, D) each."""
        return mh.attention(q, k, v, mask=mh.masks.causal())


def made(length: int, heads: int, dim: int = 64) -> tuple[list[torch.Tensor], list[str]]:
    """Queries, keys and values that look near, back at equal words and at rhythms, as heads of models do; and words."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 400, (length,), generator=generator)
    content = torch.randn(400, heads, dim, generator=generator)[words].permute(1, 0, 2)
    place = torch.randn(heads, 1, dim, generator=generator).expand(heads, length, dim)
    turned = mh.positions.Rotary(dim).turn((1.4 * place + 0.56 * content)[None], torch.arange(length)[None])
    return [turned, turned.clone(), torch.randn(1, heads, length, dim, generator=generator)], [
        f"w{int(w)}" for w in words
    ]


def recorded(length: int, heads: int) -> tuple[mh.Recording, float]:
    """The recording, and the seconds that the lens took."""
    tensors, tokens = made(length, heads)
    block = map_block(length, length)
    asked = mh.Statistics() if block is None else mh.Statistics(blocks=(block, block), block_peaks=True)
    model = Attention()
    start = time.perf_counter()
    with mh.observe(model, statistics=asked) as seen:
        model(*tensors)
    recording = seen.recording(tokens=tokens)
    return recording, time.perf_counter() - start


def cell(recording: mh.Recording, head: int, level: int, row: int, column: int, pooling: str) -> float:
    """A cell of the map in float64, by the definition, for a causal layer."""
    layer, side = recording.layers[0], 2**level
    first, left = row * side, column * side
    rows = slice(first, min(first + side, layer.sizes.queries))
    keys = slice(left, min(left + side, layer.sizes.keys))
    q, k = layer.q[0, head, rows].double(), layer.k[0, head].double()
    scores = q @ k.T / q.shape[-1] ** 0.5
    places = torch.arange(rows.start, rows.stop)
    scores[torch.arange(k.shape[0]) > places[:, None]] = -torch.inf
    weights = scores.softmax(-1)[:, keys]
    return float(weights.max() if pooling == "max" else weights.mean())


@contextmanager
def chromium() -> Iterator[object]:
    """The system's browser, without a window."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def first_picture(browser, url: str, *, offline: bool) -> tuple[object, float]:
    """A tab with the page, and the seconds from the start of the navigation to its first complete picture."""
    tab = browser.new_context(offline=offline, viewport={"width": 1280, "height": 900}).new_page()
    tab.goto(url)
    tab.evaluate("multihead.ready")
    return tab, tab.evaluate("performance.getEntriesByName('multihead-first-picture')[0].startTime") / 1000


_SWITCH = """async (head) => {
    const start = performance.now();
    multihead.store.update({ heads: [head] });
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    return performance.now() - start;
}"""
_FRAMES = """() => {
    window.frames_ = [];
    let last = performance.now();
    const next = (now) => { frames_.push(now - last); last = now; requestAnimationFrame(next); };
    requestAnimationFrame(next);
}"""
_SHARP = """async () => {
    const start = performance.now();
    const stage = document.querySelector('.map-stage');
    let quiet = 0;
    while (quiet < 2) {
        await new Promise((done) => requestAnimationFrame(done));
        quiet = stage.getAttribute('aria-busy') === 'false' ? quiet + 1 : 0;
    }
    return performance.now() - start;
}"""


def short(browser, folder: Path) -> list[tuple[object, ...]]:
    """512 tokens × 72 heads of the packaged model."""
    recording = read(SHORT, load_model(None), truncate=True)
    path, seconds, pictures, switches = folder / "short.html", [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        write_page(recording, path)
        seconds.append(time.perf_counter() - start)
    # threads of the writing still spin for a moment, on the cores that the browser would have
    time.sleep(1.0)
    for _ in range(3 * ROUNDS):
        tab, picture = first_picture(browser, path.as_uri(), offline=True)
        pictures.append(picture)
        switches += [tab.evaluate(_SWITCH, head) for head in range(12)]
        tab.context.close()
    what = f"{recording.layers[0].sizes.queries} tokens × {sum(len(layer.heads) for layer in recording)} heads, page"
    return [
        (what, "size", f"{path.stat().st_size / 1e6:.2f} MB", "6 MB"),
        (what, "written, median", f"{statistics.median(seconds):.2f} s", "1 s"),
        (what, "first picture, median", f"{statistics.median(pictures):.2f} s", "0.7 s"),
        (
            what,
            "another head, median and longest",
            f"{statistics.median(switches):.0f}, {max(switches):.0f} ms",
            "100 ms",
        ),
    ]


def long(browser, folder: Path) -> list[tuple[object, ...]]:
    """8,192 tokens × 12 heads: one page, zoomed from the whole to a pair."""
    recording, _ = recorded(8192, 12)
    path = folder / "long.html"
    start = time.perf_counter()
    write_page(recording, path)
    written = time.perf_counter() - start
    tab, picture = first_picture(browser, path.as_uri() + "#view=map&scale=log", offline=True)
    draw = random.Random(0)
    for _ in range(CHECKED):
        level, pooling, head = draw.randrange(6), draw.choice(["mean", "max"]), draw.randrange(12)
        row, column = sorted((draw.randrange(8192 >> level) for _ in range(2)), reverse=True)
        found = tab.evaluate(f"multihead.cell(0, {head}, {level}, {row}, {column}, '{pooling}')")
        exact = cell(recording, head, level, row, column, pooling) * (2**level if pooling == "mean" else 1)
        if abs(found - exact) > 2e-5:
            raise RuntimeError(f"a cell of level {level} is {found}, not {exact}: no time is worth anything.")
    tab.evaluate(_SHARP)
    box = tab.locator(".map-stage").bounding_box()
    tab.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.5 * box["height"])
    tab.evaluate(_FRAMES)
    waits = []
    for _ in range(12):
        tab.mouse.wheel(0, -240)
        tab.wait_for_timeout(300)
        waits.append(tab.evaluate(_SHARP))
    frames = sorted(tab.evaluate("frames_"))
    tab.context.close()
    what = "8192 tokens × 12 heads, page"
    return [
        (what, "size", f"{path.stat().st_size / 1e6:.1f} MB", "64 MB"),
        (what, "written", f"{written:.1f} s", ""),
        (what, "first picture", f"{picture:.2f} s", ""),
        (what, "frame while zooming, median, 95 of 100, longest", _three(frames), "50 ms"),
        (what, "sharp 300 ms after a step of zoom: further wait, median and longest", _two(waits), "0 ms"),
        (what, f"{CHECKED} random cells", "right", "right"),
    ]


def served(browser, folder: Path) -> list[tuple[object, ...]]:
    """131,072 tokens × 8 heads: a server, its tiles and its memory."""
    recording, looked = recorded(131_072, 8)
    path = folder / "served.safetensors"
    start = time.perf_counter()
    recording.save(path)
    saved = time.perf_counter() - start
    command = [sys.executable, "-m", "multihead", "view", str(path), "--serve", "--no-open"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            url = _url(server)
            urllib.request.urlopen(url).read()
            ready = time.perf_counter() - start
            tab, picture = first_picture(browser, url, offline=False)
            tab.context.close()
            times, draw = [], random.Random(0)
            for number in range(TILES):
                level, pooling, head = draw.randrange(10), draw.choice(["mean", "max"]), draw.randrange(8)
                tiles = -(-(131_072 >> level) // 256)
                y, x = sorted((draw.randrange(tiles) for _ in range(2)), reverse=True)
                start = time.perf_counter()
                query = f"tile?layer=0&head={head}&z={level}&y={y}&x={x}&pooling={pooling}"
                tile = np.frombuffer(urllib.request.urlopen(url + query).read(), "<f4").reshape(256, -1)
                times.append(1000 * (time.perf_counter() - start))
                if number < CHECKED and level < 7:
                    row, column = draw.randrange(256), draw.randrange(tile.shape[1])
                    exact = cell(recording, head, level, 256 * y + row, 256 * x + column, pooling)
                    if abs(tile[row, column] - exact) > 2e-5:
                        raise RuntimeError(f"a tile of level {level} holds {tile[row, column]}, not {exact}.")
            memory = _peak(server.pid)
        finally:
            server.terminate()
    times.sort()
    what = "131072 tokens × 8 heads, server"
    return [
        (what, "the lens", f"{looked:.1f} s", ""),
        (what, "the lens and the file, beside the lens", f"{(looked + saved) / looked:.2f} ×", "1.3 ×"),
        (what, "file", f"{path.stat().st_size / 1e6:.0f} MB", ""),
        (what, "ready after the command", f"{ready:.2f} s", "1 s"),
        (what, "first picture", f"{picture:.2f} s", "1.5 s"),
        (what, f"a tile of {TILES}, median, 95 of 100, longest", _three(times), "60 ms, 250 ms"),
        (what, "memory, mapped file included", f"{memory / 1e9:.2f} GB", "1.5 GB"),
        (what, f"cells of {CHECKED} random tiles", "right", "right"),
    ]


def _url(server: subprocess.Popen) -> str:
    for line in server.stdout:
        found = re.search(r"http://\S+", line)
        if found:
            return found[0]
    raise RuntimeError("the server ended without an address.")


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def _two(times: list[float]) -> str:
    return f"{statistics.median(times):.0f}, {max(times):.0f} ms"


def _three(times: list[float]) -> str:
    return f"{times[len(times) // 2]:.0f}, {times[int(0.95 * len(times))]:.0f}, {times[-1]:.0f} ms"


def run() -> str:
    """The table."""
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        parts = os.environ.get("VIEW_PARTS", "short long served").split()
        rows = [
            row for part in parts for row in {"short": short, "long": long, "served": served}[part](browser, folder)
        ]
    return table("The picture", ("what", "figure", "measured", "target"), rows)
