"""The page in a real Firefox, opened from a file and from the server: what the other browser's tests ask, in short."""

import base64
import json
import random
import shutil
import subprocess
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multihead import masks
from multihead.view.page import page
from multihead.view.server import opened
from multihead.web import Site
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.test_browser import EVIL
from tests.view.test_browser_map import cell_of

pytestmark = pytest.mark.browser

EXECUTABLES = ("firefox", "firefox-esr")
VIEWER = Path(__file__).parents[2] / "viewer"


class Firefox:
    """A tab, driven by viewer/tests/firefox.mjs."""

    def __init__(self, executable: str) -> None:
        self._driver = subprocess.Popen(
            ["node", str(VIEWER / "tests" / "firefox.mjs"), executable],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, name: str, *given: object) -> object:
        """The driver's answer to one command."""
        print(json.dumps([name, *given]), file=self._driver.stdin, flush=True)
        line = self._driver.stdout.readline()
        assert line, "the driver of Firefox has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def open(self, url: str) -> None:
        """A fresh tab with a page that has drawn its first picture."""
        self.ask("open", url, 1280, 1300)
        self.ask("evaluate", "multihead.ready.then(() => null)")

    def evaluate(self, script: str) -> object:
        """What a script in the page gives."""
        return self.ask("evaluate", script)

    def until(self, script: str) -> object:
        """What a script gives once that is something true."""
        for _ in range(600):
            if found := self.evaluate(script):
                return found
            time.sleep(0.05)
        pytest.fail(f"never true: {script}")

    def tile(self, head: int, level: int, pooling: str, width: int) -> np.ndarray:
        """The map's first tile of a level."""
        found = self.evaluate(f"multihead.tile(0, {head}, {level}, 0, 0, '{pooling}').then(t => [...t])")
        return np.array(found).reshape(-1, width)

    def quit(self) -> None:
        """Close the browser."""
        with self._driver:
            self._driver.stdin.close()


@pytest.fixture(scope="module")
def firefox():
    executable = next((path for path in map(shutil.which, EXECUTABLES) if path), None)
    if executable is None or shutil.which("node") is None:
        pytest.skip("no Firefox, or no Node.js to drive it, on the path")
    if not (VIEWER / "node_modules" / "puppeteer-core").is_dir():
        pytest.skip("puppeteer-core is not installed: make bundle does it")
    browser = Firefox(executable)
    yield browser
    browser.quit()


@pytest.fixture
def shown(firefox, tmp_path):
    """Open a recording from a file; afterwards nothing may have been asked of the network or complained of."""

    def open_it(recording, hash_: str = "") -> Firefox:
        path = tmp_path / "page.html"
        path.write_text(page(recording), encoding="utf-8")
        firefox.open(path.as_uri() + hash_)
        return firefox

    yield open_it
    said = firefox.ask("said")
    assert said["complaints"] == []
    assert [url for url in said["requests"] if not url.startswith(("data:", "blob:", "file:"))] == []


def test_every_row_column_and_cell_is_the_formulas(shown):
    call = made_call(queries=301, keys=301, heads=2, dim=8, spread=2.0, mask=masks.causal())
    weights, draw = true_weights(call), random.Random(3)
    tab = shown(recording_of(layer_of(call)))
    for head in range(2):
        for token in (0, 150, 300):
            np.testing.assert_allclose(
                tab.evaluate(f"[...multihead.row(0, {head}, {token})]"), weights[head, token], atol=1e-5
            )
            np.testing.assert_allclose(
                tab.evaluate(f"[...multihead.column(0, {head}, {token})]"), weights[head, :, token], atol=1e-5
            )
        for level, pooling in ((0, "mean"), (1, "mean"), (1, "max")):
            width = min(256, -(-301 // 2**level))
            tile = tab.tile(head, level, pooling, width)
            for _ in range(40):
                row, column = draw.randrange(len(tile)), draw.randrange(width)
                exact = cell_of(weights[head], level, row, column, pooling)
                assert tile[row, column] == pytest.approx(exact, abs=1e-5)
    assert np.abs(tab.tile(0, 0, "mean", 256) - weights[1, :256, :256]).max() > 0.05, "another head differs"


def test_every_view_is_drawn_and_the_address_holds_it(shown):
    call = made_call(queries=8, keys=8, heads=1, spread=3.0, mask=masks.causal())
    tab, weights = shown(recording_of(layer_of(call)), "#view=map&layer=0&heads=0&scale=linear"), true_weights(call)[0]
    tab.until("document.querySelectorAll('.axis-text .label').length > 2")
    tab.ask("press", "Escape")
    frame = tab.evaluate(
        "(({x, y, width}) => ({x, y, width}))(document.querySelector('.map-frame').getBoundingClientRect())"
    )
    side = frame["width"] / 8
    places = [
        [(frame["x"] + (key + 0.5) * side, frame["y"] + (row + 0.5) * side) for key in range(8)] for row in range(8)
    ]

    def difference() -> float:
        shot = Image.open(BytesIO(base64.b64decode(tab.ask("screenshot")))).convert("RGB")
        opacity = 1 - np.asarray(shot)[:, :, 0] / 255
        return np.abs([[opacity[int(y), int(x)] for x, y in row] for row in places] - weights).max()

    # what is drawn last comes in over a fraction of a second
    assert any(difference() < 0.02 or time.sleep(0.2) for _ in range(50))
    broad = int((weights > 0.1).sum(1).argmax())
    tab.ask("click", frame["x"] + 0.5 * side, frame["y"] + (broad + 0.5) * side)
    tab.until(f"multihead.state.token === {broad} && multihead.state.key === 0")
    tab.until(f"location.hash.includes('token={broad}')")
    tab.ask("press", "v")
    tab.until("document.querySelectorAll('.column.query .token').length === 8")
    tab.until("location.hash.includes('view=lines')")
    tab.ask("press", "v")
    tab.until("document.querySelectorAll('.token.shaded').length > 1")
    tab.until("location.hash.includes('view=text')")
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.evaluate("history.back()")
    tab.until("multihead.state.view === 'lines'")


def test_hostile_tokens_stay_data(shown):
    tab = shown(recording_of(layer_of(made_call(queries=11, keys=11)), texts={"text": [EVIL]}), "#token=1")
    assert tab.evaluate("multihead.document.texts[0].tokens") == EVIL
    assert tab.evaluate("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    tab.until("document.querySelector('.column.query [data-token=\"1\"]').innerText.startsWith('<img src=x')")


def test_the_served_page(firefox):
    call = made_call(queries=300, keys=300, heads=3, spread=2.0, mask=masks.causal())
    weights = true_weights(call)
    with Site(lambda: opened(recording_of(layer_of(call)))).running() as url:
        firefox.open(url + "#view=map&layer=0&heads=2&token=120&key=40")
        pair = float(firefox.until("document.querySelector('.readout .number')?.dataset.value"))
        assert pair == pytest.approx(weights[2, 120, 40], abs=1e-6)
        np.testing.assert_allclose(firefox.tile(2, 0, "mean", 256), weights[2, :256, :256], atol=1e-6)
        said = firefox.ask("said")
    assert said["complaints"] == []
    assert [asked for asked in said["requests"] if not asked.startswith((url.split("/", 3)[0], "data:", "blob:"))] == []


def test_the_last_of_a_million_tokens_has_its_row(shown):
    count = 1_000_000
    call = made_call(queries=count, keys=count, heads=1, dim=2, mask=masks.causal())
    recording = recording_of(layer_of(call, queries=[0, count - 1]), texts={"text": [["x"] * count]})
    tab = shown(recording, f"#view=lines&layer=0&heads=0&token={count - 1}")
    row = f"document.querySelector('.column.query [data-token=\"{count - 1}\"]')"
    tab.until(f"{row} !== null")
    inside = tab.evaluate(
        f"(([row, column]) => row.top >= column.top - 1 && row.bottom <= column.bottom + 1)"
        f"([{row}, document.querySelector('.column.query')].map(one => one.getBoundingClientRect()))"
    )
    assert inside
