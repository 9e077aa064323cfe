"""The served page in a real Chromium: its numbers come from the server, and nothing comes from anywhere else."""

import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest

from multihead import masks
from multihead.recording.maps import LayerMap
from multihead.view.server import opened
from multihead.web import Site
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.test_browser import chromium, until  # noqa: F401
from tests.view.test_browser_map import cell_of

pytestmark = pytest.mark.browser

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u202egnp.exe", "𝔘 %2e%2e/"]


@contextmanager
def seen(browser, recording, hash_: str = ""):
    """A tab with the served page, its server, and what went wrong in it."""
    site = Site(lambda: opened(recording))
    with site.running() as url:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        tab, complaints = context.new_page(), []
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        context.route(lambda asked: not asked.startswith((origin, "blob:")), lambda route: route.abort())
        tab.on("request", lambda asked: asked.url.startswith(origin) or complaints.append(asked.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.goto(url + hash_)
        tab.evaluate("multihead.ready")
        yield tab, complaints
        context.close()


def test_panel_map_and_text_show_the_servers_numbers(chromium):  # noqa: F811
    call = made_call(queries=300, keys=300, heads=3, spread=2.0, mask=masks.causal())
    weights = true_weights(call)
    with seen(chromium, recording_of(layer_of(call)), "#view=map&layer=0&heads=2&token=120&key=40") as (
        tab,
        complaints,
    ):
        for direction, exact in (("out", weights[2, 120]), ("in", weights[2, :, 120])):
            until(tab, f"document.querySelectorAll('[data-direction=\"{direction}\"] li[data-token]').length > 3")
            rows = tab.locator(f'.panel .part[data-direction="{direction}"] li[data-token]').all()
            assert len(rows) > 3
            for row in rows:
                shown, token = float(row.get_attribute("data-weight")), int(row.get_attribute("data-token"))
                assert shown == pytest.approx(exact[token], abs=1e-6)
        until(tab, "document.querySelector('.readout .number')?.dataset.value !== undefined")
        pair = float(tab.locator(".readout .number").get_attribute("data-value"))
        assert pair == pytest.approx(weights[2, 120, 40], abs=1e-6)
        for level, pooling in ((0, "mean"), (1, "mean"), (1, "max")):
            tile = np.array(tab.evaluate(f"multihead.tile(0, 2, {level}, 0, 0, '{pooling}').then(t => [...t])"))
            width = min(256, -(-300 // 2**level))
            for row, column in ((0, 0), (100, 90), (149, 3)):
                exact = cell_of(weights[2], level, row, column, pooling)
                assert tile.reshape(-1, width)[row, column] == pytest.approx(exact, abs=1e-6)
        until(tab, "document.querySelectorAll('.chip').length >= 3")
        chip = tab.locator('.chip[data-head="1"]')
        assert float(chip.get_attribute("data-weight")) == pytest.approx(weights[1, 120].max(), abs=1e-6)
        tab.keyboard.press("v")
        tab.keyboard.press("v")
        until(tab, "document.querySelectorAll('.token.shaded').length > 1")
        assert complaints == []


def test_a_map_that_takes_long_says_so(chromium, monkeypatch):  # noqa: F811
    go_on, tile = threading.Event(), LayerMap.tile
    monkeypatch.setattr(LayerMap, "tile", lambda *given, **options: go_on.wait(60) and tile(*given, **options))
    recording = recording_of(layer_of(made_call(queries=300, keys=300)))
    with seen(chromium, recording, "#view=map&layer=0&heads=0") as (tab, complaints):
        words = tab.get_by_role("status").filter(has_text="computing what is in sight")
        words.wait_for()
        go_on.set()
        words.wait_for(state="detached")
        until(tab, "document.querySelector('.map-stage').getAttribute('aria-busy') === 'false'")
        assert complaints == []


def test_the_overview_follows_and_tokens_stay_data(chromium):  # noqa: F811
    length = 40
    tokens = [HOSTILE[i % 4] if i % 10 < 4 else f"word{i}" for i in range(length)]
    call = made_call(queries=length, keys=length, heads=2)
    recording = recording_of(layer_of(call), texts={"text": [tokens]})
    evil = "#view=map&token=1&at=1,1,<script>alert(1)</script>&text=<img src=x onerror=alert(1)>&heads=99-x"
    with seen(chromium, recording, evil) as (tab, complaints):
        until(tab, "document.querySelectorAll('.axis-text .label').length > 2")
        assert tab.evaluate("multihead.state.token") == 1
        tab.locator('.overview .cell[data-head="1"]').click()
        assert tab.evaluate("multihead.state.heads") == [1]
        assert tab.locator("#multihead script, #multihead img").count() == 0
        assert complaints == []


def test_a_server_that_is_gone_is_said(chromium):  # noqa: F811
    site = Site(lambda: opened(recording_of(layer_of(made_call(queries=30, keys=30)))))
    context = chromium.new_context()
    tab = context.new_page()
    with site.running() as url:
        tab.goto(url)
        tab.evaluate("multihead.ready")
        until(tab, "document.querySelectorAll('.panel li[data-token]').length > 0")
    tab.keyboard.press("ArrowRight")
    notice = tab.locator(".notice")
    notice.wait_for()
    assert notice.inner_text() == "The server does not answer: it has been stopped, or the connection is gone."
    context.close()
