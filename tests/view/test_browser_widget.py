"""The notebook's widget in a real Chromium, its network blocked: a frame, its messages, and the kernel behind them."""

import base64
import html
import math
import time
from importlib import resources
from queue import Empty, Queue

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.recording import Recording
from multihead.view.entries import Data
from multihead.view.notebook import Answers
from multihead.view.page import html_of, page
from multihead.view.served import Served
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.test_browser import chromium  # noqa: F401

pytestmark = pytest.mark.browser

HOST = """\
<!doctype html>
<title>a notebook</title>
<div id="cell"></div>
<script>
const outbox = [], keys = [], heard = new Map();
const traits = {};
let dead = false;
const model = {
  get: (name) => traits[name],
  set: (name, value) => { traits[name] = value; },
  save_changes: () => outbox.push({ kind: "saved", state: traits.state }),
  send: (content) => { if (dead) throw new Error("no kernel"); outbox.push(content); },
  on: (event, callback) => heard.set(event, new Set(heard.get(event)).add(callback)),
  off: (event, callback) => heard.get(event).delete(callback),
};
const emit = (event, ...given) => heard.get(event)?.forEach((callback) => callback(...given));
const change = (name, value) => { traits[name] = value; emit(`change:${name}`); };
// buffers lie somewhere inside what a socket received
const deliver = (content, base64) => {
  const bytes = base64 === null ? null : Uint8Array.from(`0123456789ABCDEF${atob(base64)}`, (c) => c.charCodeAt(0));
  emit("msg:custom", content, bytes ? [new DataView(bytes.buffer, 16)] : []);
};
let end = null;
async function begin(script, given) {
  Object.assign(traits, given);
  const { default: widget } = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  end = widget.render({ model, el: document.getElementById("cell") });
}
addEventListener("keydown", (event) => keys.push(event.key));
</script>
"""


class Notebook:
    """A page that does what a notebook does with a widget, and a kernel that answers when it is let."""

    def __init__(self, tab, host, served: Served | None, text: str, state: str) -> None:
        self.tab, self.host = tab, host
        self.sent: Queue = Queue()
        self.answers = None if served is None else Answers(served, lambda *answer: self.sent.put(answer))
        self.saved: list[str] = []
        script = resources.files("multihead.view").joinpath("static", "widget.js").read_text(encoding="utf-8")
        host.evaluate("given => begin(...given)", [script, {"page": text, "state": state, "height": 640}])

    @property
    def frame(self):
        frame = self.host.locator("#cell iframe").element_handle().content_frame()
        frame.evaluate("multihead.ready")
        return frame

    def asked(self) -> list[dict]:
        """What the widget sends, taken from it without an answer."""
        found = self.host.evaluate("outbox.splice(0)")
        self.saved += [one["state"] for one in found if one["kind"] == "saved"]
        return [one for one in found if one["kind"] != "saved"]

    def work(self) -> int:
        """Let the kernel answer what it was asked; how much that was."""
        questions = self.asked()
        for question in questions:
            assert self.answers is not None, question
            self.answers.received(question)
        while True:
            try:
                content, buffers = self.sent.get(timeout=0.02)
            except Empty:
                return len(questions)
            self.deliver(content, buffers[0] if buffers else None)

    def deliver(self, content: dict, body: bytes | None) -> None:
        encoded = None if body is None else base64.b64encode(body).decode()
        self.host.evaluate("given => deliver(...given)", [content, encoded])

    def until(self, true):
        """Work until something is true, and say what it is."""
        end = time.monotonic() + 40
        while not (found := true()):
            assert time.monotonic() < end, "it did not come"
            self.work()
            self.tab.wait_for_timeout(20)
        return found

    def settle(self) -> None:
        """Work until nothing is asked any more."""
        quiet = time.monotonic()
        while time.monotonic() < quiet + 1:
            if self.work():
                quiet = time.monotonic()
            self.tab.wait_for_timeout(20)

    def press(self, key: str) -> None:
        """Press a key with the frame in focus."""
        self.frame.locator(".mark-name").click()
        self.tab.keyboard.press(key)

    def unanswered(self, enough) -> list[dict]:
        """What is asked until it is enough, without an answer."""
        found, end = self.asked(), time.monotonic() + 40
        while not enough(found):
            assert time.monotonic() < end, f"it did not come: {found}"
            self.tab.wait_for_timeout(20)
            found += self.asked()
        return found

    def shown(self, direction: str = "out") -> dict[int, float]:
        rows = self.frame.evaluate(
            f"[...document.querySelectorAll('.panel .part[data-direction=\"{direction}\"] li[data-token]')]"
            ".map(row => [row.dataset.token, row.dataset.weight])"
        )
        return {int(token): float(weight) for token, weight in rows}

    def notice(self) -> str | None:
        return self.frame.evaluate("(n => n.hidden ? null : n.textContent)(document.querySelector('.notice'))")

    def state(self) -> dict:
        return self.frame.evaluate("multihead.state")


@pytest.fixture
def notebook(chromium, tmp_path):  # noqa: F811
    """Open widgets; afterwards nothing may have asked for the network or complained."""
    opened = []
    path = tmp_path / "host.html"

    def open_it(
        recording: Recording, *, whole: bool = False, state: str = "", start=None, sandbox: str | None = None
    ) -> Notebook:
        inside = f'<iframe id="output" sandbox="{sandbox}" srcdoc="{html.escape(HOST)}"></iframe>'
        path.write_text(HOST if sandbox is None else f"<!doctype html><title>an editor</title>{inside}", "utf-8")
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True)
        tab, complaints = context.new_page(), []
        # what a browser says of an editor's frame is not about what stands in it
        tab.on("console", lambda message: "can escape" in message.text or complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda asked: asked.url.startswith(("blob:", "file:")) or complaints.append(asked.url))
        tab.goto(path.as_uri())
        host = tab if sandbox is None else tab.locator("#output").element_handle().content_frame()
        served = None if whole else Served(recording, opening=start, kind="frame")
        text = page(recording, start=start) if served is None else html_of(served.document, Data())
        one = Notebook(tab, host, served, text, state)
        opened.append((one, context, complaints))
        return one

    yield open_it
    for one, context, complaints in opened:
        if one.answers is not None:
            one.answers.close()
        assert complaints == []
        context.close()


START = {"layer": 0, "heads": [1], "text": 0, "token": 120}
CALL = made_call(queries=300, keys=300, heads=3, spread=2.0, mask=masks.causal())


@pytest.fixture(scope="module")
def recording() -> Recording:
    return recording_of(layer_of(CALL))


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return true_weights(CALL)


def test_the_frame_shows_the_kernels_numbers(notebook, recording, exact):
    one = notebook(recording, start=START)
    for direction, expected in (("out", exact[1, 120]), ("in", exact[1, :, 120])):
        shown = one.until(lambda direction=direction: len(one.shown(direction)) > 3 and one.shown(direction))
        for token, weight in shown.items():
            assert weight == pytest.approx(expected[token], abs=1e-6)
        assert max(shown, key=shown.get) == expected.argmax()
    one.frame.evaluate("void multihead.tile(0, 2, 1, 0, 0, 'max').then(tile => { window.tile = [...tile]; })")
    one.until(lambda: one.frame.evaluate("window.tile !== undefined"))
    tile = np.array(one.frame.evaluate("tile")).reshape(150, 150)
    assert tile == pytest.approx(exact[2].reshape(150, 2, 150, 2).max((1, 3)), abs=2e-6)
    one.until(lambda: one.frame.evaluate("document.querySelectorAll('.chip').length >= 3"))
    chip = one.frame.evaluate("document.querySelector('.chip[data-head=\"2\"]').dataset.weight")
    assert float(chip) == pytest.approx(exact[2, 120].max(), abs=1e-6)
    assert one.notice() is None
    footer = one.frame.evaluate("document.querySelector('footer').innerText")
    assert "the weights come from the notebook's kernel." in footer


def test_a_whole_page_needs_no_kernel(notebook, recording, exact):
    one = notebook(recording, whole=True, start=START)
    row = torch.tensor(one.frame.evaluate("[...multihead.row(0, 1, 299)]"), dtype=torch.float64)
    torch.testing.assert_close(row, torch.from_numpy(exact[1, 299]), atol=1e-5, rtol=0)
    tile = np.array(one.frame.evaluate("multihead.tile(0, 2, 0, 0, 0, 'mean').then(tile => [...tile])"))
    assert tile.reshape(256, 256) == pytest.approx(exact[2, :256, :256], abs=1e-5)
    assert one.asked() == []


OUTPUTS = {
    "VS Code's webview": "allow-same-origin allow-pointer-lock allow-scripts allow-downloads allow-forms",
    "Colab's output frame": "allow-downloads allow-forms allow-popups allow-same-origin allow-scripts",
    "a frame without an origin": "allow-scripts",
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("sandbox", OUTPUTS.values(), ids=OUTPUTS)
def test_in_the_frames_that_editors_show_outputs_in(notebook, recording, exact, sandbox, whole):
    one = notebook(recording, whole=whole, start=START, sandbox=sandbox)
    shown = one.until(lambda: len(one.shown()) > 3 and one.shown())
    for token, weight in shown.items():
        assert weight == pytest.approx(exact[1, 120, token], abs=1e-5)
    one.frame.evaluate("void multihead.tile(0, 2, 1, 0, 0, 'max').then(tile => { window.tile = [...tile]; })")
    one.until(lambda: one.frame.evaluate("window.tile !== undefined"))
    tile = np.array(one.frame.evaluate("tile")).reshape(150, 150)
    assert tile == pytest.approx(exact[2].reshape(150, 2, 150, 2).max((1, 3)), abs=1e-5)
    one.press("ArrowRight")
    one.until(lambda: one.saved and "token=121" in one.saved[-1])


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_chosen_is_kept_by_the_widget(notebook, recording, whole):
    one = notebook(recording, whole=whole, state="#layer=0&heads=2&text=0&token=40&view=text")
    assert (one.state()["token"], one.state()["heads"], one.state()["view"]) == (40, [2], "text")
    one.press("ArrowRight")
    one.until(lambda: one.saved and "token=41" in one.saved[-1])
    assert one.saved[-1].startswith("#layer=0&heads=2&text=0&token=41&view=text")

    one.tab.evaluate("change('state', '#layer=0&heads=0&token=5&view=lines')")
    one.until(lambda: one.state()["token"] == 5)
    assert (one.state()["heads"], one.state()["view"]) == ([0], "lines")

    # as notebooks do with cells that leave the window
    one.tab.evaluate("{ const box = document.querySelector('#cell > div'); box.remove(); cell.append(box); }")
    one.until(lambda: one.state()["token"] == 5)
    assert one.state()["heads"] == [0]


def test_a_state_that_means_nothing_is_left_out(notebook, recording):
    one = notebook(recording, whole=True, start=START, state='#token=<img src=x onerror=alert(1)>&layer="></iframe>')
    assert one.state()["token"] == 120


def test_only_the_widgets_own_frame_is_heard(notebook, recording):
    one = notebook(recording, start=START)
    one.settle()
    one.saved.clear()
    question = "{ multihead: 'ask', id: 1, name: 'row', parameters: { layer: '0', heads: '0', query: '1' } }"
    state = "{ multihead: 'state', hash: '#token=1' }"
    one.tab.evaluate(f"postMessage({question}, '*'); postMessage({state}, '*')")
    one.tab.evaluate(
        "text => { const other = document.createElement('iframe'); other.srcdoc = text; document.body.append(other); }",
        f"<script>parent.postMessage({question}, '*'); parent.postMessage({state}, '*')</script>",
    )
    one.tab.wait_for_timeout(500)
    assert (one.asked(), one.saved) == ([], [])
    one.frame.evaluate(f"parent.postMessage({question}, '*')")
    one.tab.wait_for_timeout(500)
    assert [one["id"] for one in one.asked()] == [1]


def test_only_questions_are_passed_on_and_only_answers_come_back(notebook, recording):
    one = notebook(recording, start=START)
    one.settle()
    for wrong in ("null", "'ask'", "{}", "{ multihead: 'ask', id: '1' }", "{ multihead: 'ask', id: 0.5 }", "[1]"):
        one.frame.evaluate(f"parent.postMessage({wrong}, '*')")
    one.frame.evaluate("parent.postMessage({ multihead: 'ask', id: 9, name: 'row', parameters: {}, more: 1 }, '*')")
    one.tab.wait_for_timeout(300)
    assert one.asked() == [{"kind": "ask", "id": 9, "name": "row", "parameters": {}}]
    # the page itself listens to nobody but the widget, and the widget to nobody but its kernel
    before = one.shown()
    one.deliver({"id": 12345}, b"\0\0\0\0")
    one.frame.evaluate("postMessage({ multihead: 'state', hash: '#token=1' }, '*')")
    one.tab.wait_for_timeout(300)
    assert (one.shown(), one.state()["token"]) == (before, 120)


def test_questions_that_nobody_waits_for_are_taken_back(notebook, recording, exact):
    one = notebook(recording, start=START)
    first = one.unanswered(lambda found: len(found) >= 2)
    assert {question["kind"] for question in first} == {"ask"}
    one.press("ArrowRight")
    later = one.unanswered(lambda found: len([q for q in found if q["kind"] == "ask"]) >= 2)
    assert {q["id"] for q in later if q["kind"] == "drop"} == {q["id"] for q in first}
    # answers to what was taken back change nothing
    for question in first:
        one.deliver({"id": question["id"], "error": "too late"}, None)
    for question in later:
        one.answers.received(question)
    one.until(lambda: len(one.shown()) > 3)
    assert one.notice() is None
    for token, weight in one.shown().items():
        assert weight == pytest.approx(exact[1, 121, token], abs=1e-6)


def test_ending_takes_everything_back_and_leaves_nothing(notebook, recording):
    one = notebook(recording, start=START)
    first = one.unanswered(lambda found: len(found) >= 2)
    one.tab.evaluate("end()")
    assert {q["id"] for q in one.asked()} == {q["id"] for q in first}
    assert one.tab.evaluate("[...heard.values()].map(set => set.size)") == [0, 0, 0]
    assert one.tab.locator("#cell > *").count() == 0


def test_a_kernel_that_is_busy_or_gone_is_told(notebook, recording):
    one = notebook(recording, start=START)
    waiting = one.unanswered(lambda _: one.notice() is not None)
    assert one.notice() == "The kernel does not answer yet: it is busy with another cell, or it has ended."
    for question in waiting:
        one.answers.received(question)
    one.until(lambda: len(one.shown()) > 3)
    assert one.notice() is None

    one.tab.evaluate("dead = true")
    one.press("ArrowRight")
    one.until(lambda: one.notice() is not None)
    assert one.notice() == "The kernel is gone: run the cell again."


def test_a_refusal_is_shown_as_text(notebook, recording):
    one = notebook(recording, start=START)
    asked = one.unanswered(bool)
    one.deliver({"id": asked[0]["id"], "error": "<img src=x onerror=alert(1)>"}, None)
    one.until(lambda: one.notice() is not None)
    assert one.notice() == "<img src=x onerror=alert(1)>"
    assert one.frame.evaluate("document.querySelectorAll('img').length") == 0


def test_the_frame_is_a_place_of_its_own(notebook, recording):
    one = notebook(recording, whole=True, start=START)
    assert one.tab.locator("#cell iframe").get_attribute("sandbox") == "allow-scripts"
    reach = "(() => { try { return String(parent.document); } catch (error) { return error.name; } })()"
    assert one.frame.evaluate(reach) == "SecurityError"
    one.press("ArrowRight")
    assert one.state()["token"] == 121
    assert one.tab.evaluate("keys") == []
    one.tab.keyboard.press("Tab")
    assert one.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_the_height_is_a_trait_and_can_be_pulled(notebook, recording):
    one = notebook(recording, whole=True)
    box = one.tab.locator("#cell > div")
    assert box.bounding_box()["height"] == 640
    one.tab.evaluate("change('height', 400)")
    assert box.bounding_box()["height"] == 400
    size = box.bounding_box()
    corner = size["x"] + size["width"] - 4, size["y"] + size["height"] - 4
    for _ in range(20):
        # where the frame ended before, its own process may still hear the mouse for a moment
        one.tab.mouse.move(*corner)
        one.tab.mouse.down()
        one.tab.mouse.move(corner[0], corner[1] + 150, steps=5)
        one.tab.mouse.up()
        if box.bounding_box()["height"] != 400:
            break
        one.tab.wait_for_timeout(100)
    assert math.isclose(box.bounding_box()["height"], 550, abs_tol=2)
    inner = one.tab.locator("#cell iframe").bounding_box()["height"]
    assert 530 < inner < 550


def test_a_page_that_asks_a_notebook_says_so_elsewhere(chromium, recording, tmp_path):  # noqa: F811
    served = Served(recording, kind="frame")
    path = tmp_path / "alone.html"
    path.write_text(html_of(served.document, Data()), encoding="utf-8")
    served.close()
    context = chromium.new_context(offline=True)
    tab = context.new_page()
    tab.goto(path.as_uri())
    complaint = tab.locator(".complaint[role=alert]")
    complaint.wait_for()
    assert "This page asks a notebook for its numbers: open the notebook and run the cell." in complaint.inner_text()
    context.close()
