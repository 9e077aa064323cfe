"""A recording in a real JupyterLab: the cells are run in Chromium, the network blocked but for this machine."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.test_browser import chromium  # noqa: F401

pytestmark = [pytest.mark.browser, pytest.mark.notebook]

SMALL = made_call(queries=11, keys=11, spread=2.0)
LARGE = made_call(queries=1499, keys=1499, heads=4, dim=512, spread=0.3, seed=1)

CELLS = (
    "import multihead\nrecording = multihead.load('small.safetensors')\nrecording",
    "multihead.load('large.safetensors')",
    "from multihead.view.notebook import widget\n"
    "shown = widget(recording, start={'layer': 0, 'heads': [2], 'token': 3}, height=500)\nshown",
    "print(shown.state)",
)
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "cells": [
        {
            "cell_type": "code",
            "id": f"cell{place}",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for place, source in enumerate(CELLS)
    ],
}
ASKS_NOBODY = {"fetchNews": "false", "checkForUpdates": False}
OPTIONS = (
    "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=secret",
    "--LanguageServerManager.autodetect=False", "--ServerApp.terminals_enabled=False",
)  # fmt: skip
# what JupyterLab says of itself
ITS_OWN = ("Disabling terminals plugin because they are not available on the server",)


def eventually(true, wait=lambda: time.sleep(0.1)):
    """What comes to be true. A tab's requests are only let through while it is waited for in the tab."""
    end = time.monotonic() + 60
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        wait()
    return found


@pytest.fixture
def jupyter(tmp_path_factory):
    """A JupyterLab of its own, in a folder with two recordings and a notebook."""
    if find_spec("jupyterlab") is None:
        if os.environ.get("CI"):
            pytest.fail("no JupyterLab: the widget cannot be tested")
        pytest.skip("no JupyterLab")
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    recording_of(layer_of(SMALL)).save(folder / "small.safetensors")
    recording_of(layer_of(LARGE)).save(folder / "large.safetensors")
    (folder / "seen.ipynb").write_text(json.dumps(NOTEBOOK), encoding="utf-8")
    settings = home / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(ASKS_NOBODY), encoding="utf-8")
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "run",
        "IPYTHONDIR": "ip",
    }
    environment = {**os.environ, "HOME": str(home)} | {name: str(home / place) for name, place in places.items()}
    log = home / "log"
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--ServerApp.root_dir={folder}"]
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        url = eventually(lambda: re.search(r"http://127\.0\.0\.1:\d+/", log.read_text(encoding="utf-8")))[0]
        yield SimpleNamespace(folder=folder, url=url, environment=environment)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


class Lab:
    """The notebook in a tab, and everything that went wrong there."""

    def __init__(self, browser, jupyter) -> None:
        self.folder = jupyter.folder
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        self.complaints = []
        self.tab = context.new_page()
        self.tab.set_default_timeout(60_000)
        context.route(lambda asked: not asked.startswith((jupyter.url, "blob:", "data:")), self._refuse)
        self.tab.on("console", self._said)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(f"{jupyter.url}lab/tree/seen.ipynb?token=secret")
        self.tab.get_by_text("| Idle").wait_for()

    def _refuse(self, route) -> None:
        self.complaints.append(route.request.url)
        route.abort()

    def _said(self, message) -> None:
        if message.type in ("error", "warning") and message.text not in ITS_OWN:
            self.complaints.append(message.text)

    def eventually(self, true):
        return eventually(true, lambda: self.tab.wait_for_timeout(100))

    def cell(self, place: int):
        return self.tab.locator(".jp-Notebook .jp-CodeCell").nth(place)

    def run(self, place: int) -> None:
        self.cell(place).locator(".cm-content").click()
        self.tab.keyboard.press("Control+Enter")

    def frame(self, place: int):
        return ready(self.cell(place).locator(".jp-OutputArea-output iframe"))


def ready(iframe):
    """The frame, drawn: a browser draws none that is out of sight."""
    iframe.scroll_into_view_if_needed()
    frame = iframe.element_handle().content_frame()
    frame.evaluate("multihead.ready")
    return frame


def shown(frame) -> dict[int, float]:
    rows = frame.evaluate(
        "[...document.querySelectorAll('.panel .part[data-direction=\"out\"] li[data-token]')]"
        ".map(row => [row.dataset.token, row.dataset.weight])"
    )
    return {int(token): float(weight) for token, weight in rows}


def is_exact(frame, *, swapped: bool = False) -> None:
    exact = torch.from_numpy(true_weights(SMALL))
    exact = exact.flip(0) if swapped else exact
    for head in range(3):
        row = torch.tensor(frame.evaluate(f"[...multihead.row(0, {head}, 5)]"), dtype=torch.float64)
        torch.testing.assert_close(row, exact[head, 5], atol=1e-5, rtol=0)


def shows_itself(lab):
    frame = lab.frame(0)
    is_exact(frame)
    with pytest.raises(AssertionError, match="not close"):
        is_exact(frame, swapped=True)
    assert frame.evaluate("multihead.document.source") is None
    assert lab.complaints == []


def asks_its_kernel(lab):
    frame = lab.frame(1)
    numbers = lab.eventually(lambda: len(shown(frame)) > 3 and shown(frame))
    assert frame.evaluate("multihead.document.source") == {"kind": "frame"}
    state = frame.evaluate("multihead.state")
    exact = true_weights(LARGE, heads=state["heads"], queries=[state["token"]])[0, 0]
    for token, weight in numbers.items():
        assert weight == pytest.approx(exact[token], abs=1e-6)
    assert max(numbers, key=numbers.get) == exact.argmax()
    assert frame.evaluate("document.querySelector('.notice').hidden")
    assert lab.complaints == []


def keeps_what_is_chosen(lab):
    frame = lab.frame(2)
    assert (frame.evaluate("multihead.state.token"), frame.evaluate("multihead.state.heads")) == (3, [2])
    frame.locator('.column.query .token[data-token="7"]').click()
    lab.tab.wait_for_timeout(1000)
    lab.run(3)
    printed = lab.cell(3).locator(".jp-OutputArea-output").inner_text()
    assert printed.startswith("#layer=0&heads=2&text=0&token=7&")
    lab.tab.keyboard.press("Control+s")
    lab.eventually(lambda: "token=7" in (lab.folder / "seen.ipynb").read_text(encoding="utf-8"))
    lab.tab.reload()
    lab.cell(2).locator(".jp-OutputArea-output iframe").wait_for()
    assert lab.frame(2).evaluate("multihead.state.token") == 7
    assert lab.complaints == []


def shows_without_a_kernel(chromium, jupyter, tmp_path):  # noqa: F811
    saved = json.loads((jupyter.folder / "seen.ipynb").read_text(encoding="utf-8"))
    kinds = [set(output["data"]) for cell in saved["cells"][:3] for output in cell["outputs"]]
    assert kinds == [{"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}] * 3
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path), "seen.ipynb"]
    subprocess.run(command, cwd=jupyter.folder, env=jupyter.environment, check=True, capture_output=True)
    context = chromium.new_context(offline=True)
    tab = context.new_page()
    tab.goto((tmp_path / "seen.html").as_uri())
    frames = tab.locator("iframe")
    assert frames.count() == 2
    for place, token in ((0, None), (1, 3)):
        frame = ready(frames.nth(place))
        is_exact(frame)
        assert token in (None, frame.evaluate("multihead.state.token"))
    assert "larger than the 8 MB that a notebook keeps: run this cell" in tab.locator("body").inner_text()
    context.close()


def test_a_notebook_from_its_first_cell_to_the_exported_page(chromium, jupyter, tmp_path):  # noqa: F811
    lab = Lab(chromium, jupyter)
    for place in range(3):
        lab.run(place)
    shows_itself(lab)
    asks_its_kernel(lab)
    keeps_what_is_chosen(lab)
    lab.tab.context.close()
    shows_without_a_kernel(chromium, jupyter, tmp_path)
