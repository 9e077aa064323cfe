"""Heads in an order in a real Chromium: what stands first, what it says, and how keys move through it."""

import re

import pytest
import torch

from multihead import masks
from multihead.recording.traits import LABELS
from tests.view.made import layer_of, made_call, recording_of
from tests.view.test_accessibility import axe, ready, violations, visit  # noqa: F401  fixtures
from tests.view.test_browser import chromium, opened  # noqa: F401  fixtures

pytestmark = pytest.mark.browser

TRAITS = ("entropy", "distance", "sink", "concentration")


def some_recording(layers=3, heads=5, queries=19, **options):
    """Heads from broad to sharp, so that their numbers differ."""
    made = []
    for index in range(layers):
        call = made_call(heads=heads, queries=queries, keys=queries, seed=index, **options)
        call.q.mul_(torch.linspace(0.2, 4.0, heads)[:, None, None])
        made.append(layer_of(call, index=index))
    return recording_of(*made)


def order(shown) -> list[tuple[int, int]]:
    cells = "[...document.querySelectorAll('.overview .cell')].map(({dataset}) => [dataset.layer, dataset.head])"
    return [(int(layer), int(head)) for layer, head in shown.tab.evaluate(cells)]


def expected(recording, trait, *, largest):
    found = recording.traits()
    known = [one for one in found if getattr(one, trait) is not None]
    known.sort(key=lambda one: getattr(one, trait), reverse=largest)
    return [(one.layer, one.head) for one in [*known, *(one for one in found if one not in known)]]


def wait_for(shown, condition):
    """Until it holds; the page's policy forbids what playwright would do for this."""
    for _ in range(50):
        if shown.tab.evaluate(condition):
            return
        shown.tab.wait_for_timeout(40)
    raise AssertionError(f"{condition} did not come true in two seconds")


def choose(shown, trait):
    shown.tab.get_by_label("order of the maps").select_option(trait)


@pytest.mark.parametrize("trait", TRAITS)
def test_maps_stand_in_the_order_of_a_number(opened, trait):  # noqa: F811
    recording = some_recording()
    shown = opened(recording).ready()
    by_place = order(shown)
    assert by_place == [(layer, head) for layer in range(3) for head in range(5)]
    choose(shown, trait)
    assert order(shown) == expected(recording, trait, largest=True)
    cells = shown.tab.locator(".overview .cell").all()
    for cell, one in zip(cells, sorted(recording.traits(), key=lambda one: -getattr(one, trait)), strict=True):
        assert float(cell.get_attribute("data-value")) == pytest.approx(getattr(one, trait))
        name, value = cell.inner_text().split()[:2]
        assert name == f"{one.layer}.{one.head}"
        assert float(value) == pytest.approx(getattr(one, trait), abs=0.051)
    shown.tab.get_by_text("largest first").click()
    assert order(shown) == expected(recording, trait, largest=False)
    choose(shown, "")
    assert order(shown) == by_place


def test_each_map_keeps_its_picture_and_its_colour(opened):  # noqa: F811
    shown = opened(some_recording(), start={"layer": 1, "heads": [2]}).ready()
    choose(shown, "entropy")
    drawn = """() => [...document.querySelectorAll('.overview .row')].flatMap((row) => {
      const canvas = row.querySelector('canvas');
      if (!canvas) return [];
      const { width, height } = canvas;
      const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
      return [...row.querySelectorAll('.cell')].map((cell, column) => {
        let [ink, strongest] = [0, [0, 0, 0, 0]];
        for (let y = 0; y < height; y++) for (let x = column * height; x < (column + 1) * height; x++) {
          const at = 4 * (y * width + x);
          ink += pixels[at + 3];
          if (pixels[at + 3] > strongest[3]) strongest = [...pixels.slice(at, at + 4)];
        }
        return { head: `${cell.dataset.layer}.${cell.dataset.head}`, ink,
          colour: strongest.slice(0, 3), chosen: cell.ariaSelected };
      });
    })"""
    found = shown.tab.evaluate(drawn)
    # the broader, the fuller: one map is as dark everywhere as at its darkest
    assert found[0]["ink"] > 2 * found[-1]["ink"] > 0
    assert [one["head"] for one in found if one["chosen"] == "true"] == ["1.2"]
    colours = {one["head"]: one["colour"] for one in found}
    rest = colours.pop("1.2")
    assert all(sum(abs(a - b) for a, b in zip(colour, rest, strict=True)) > 60 for colour in colours.values())


def test_keys_move_in_the_order_that_is_seen(opened):  # noqa: F811
    recording = some_recording()
    shown = opened(recording, start={"layer": 0, "heads": [0]}).ready()
    choose(shown, "concentration")
    heads = order(shown)
    across = int(shown.tab.locator(".overview").evaluate("e => getComputedStyle(e).getPropertyValue('--columns')"))
    assert 2 <= across < len(heads)
    place = heads.index((0, 0))
    shown.tab.locator('.overview .cell[tabindex="0"]').focus()
    for key, to in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 1 + across),
        ("ArrowLeft", across),
        ("ArrowUp", 0),
        ("ArrowUp", 0),
        ("ArrowLeft", 0),
        ("End", len(heads) - 1),
        ("ArrowRight", len(heads) - 1),
        ("ArrowDown", len(heads) - 1),
    ):
        shown.tab.keyboard.press(key)
        place = to
        assert (shown.state["layer"], shown.state["heads"]) == (heads[place][0], [heads[place][1]]), key
        focused = "[document.activeElement.dataset.layer, document.activeElement.dataset.head].map(Number)"
        assert shown.tab.evaluate(focused) == list(heads[place]), key


def test_a_click_with_shift_takes_the_head_of_another_layer_alone(opened):  # noqa: F811
    shown = opened(some_recording(), start={"layer": 0, "heads": [0, 3]}).ready()
    choose(shown, "sink")
    shown.tab.locator('.overview .cell[data-layer="0"][data-head="1"]').click(modifiers=["Shift"])
    assert (shown.state["layer"], shown.state["heads"]) == (0, [0, 1, 3])
    shown.tab.locator('.overview .cell[data-layer="2"][data-head="1"]').click(modifiers=["Shift"])
    assert (shown.state["layer"], shown.state["heads"]) == (2, [1])


def test_the_order_is_in_the_address_and_back_takes_it_back(opened):  # noqa: F811
    recording = some_recording()
    shown = opened(recording).ready()
    choose(shown, "entropy")
    wait_for(shown, "location.hash.includes('sort=-entropy')")
    shown.tab.get_by_text("largest first").click()
    wait_for(shown, "location.hash.includes('sort=entropy')")
    shown.tab.reload()
    shown.ready()
    assert order(shown) == expected(recording, "entropy", largest=False)
    assert shown.tab.get_by_label("order of the maps").input_value() == "entropy"
    shown.tab.go_back()
    wait_for(shown, "multihead.state.sort === '-entropy'")
    assert order(shown) == expected(recording, "entropy", largest=True)
    assert {url.partition("#")[0] for url in shown.requests} == {shown.url}
    # the second is the reload's
    del shown.requests[1:]


def test_kinds_say_their_thresholds_and_mark_their_heads(opened):  # noqa: F811
    recording = some_recording()
    found = recording.traits()
    shown = opened(recording).ready()
    shown.tab.get_by_text("kinds of heads").click()
    rows = shown.tab.locator(".kinds li")
    labels = [row.get_attribute("data-label") for row in rows.all()]
    assert labels == [*(name for name, _, _ in LABELS), ""]
    for row, (name, trait, least) in zip(rows.all(), LABELS, strict=False):
        rule = row.locator(".rule").inner_text()
        assert re.search(r"at least ([\d.]+)", rule)[1] == f"{least:g}"
        words = {"previous": "before", "next": "after", "first": "first token", "far": "32 tokens", "spread": "entropy"}
        assert words.get(trait, {"itself": "itself", "delimiters": "punctuation"}.get(trait)) in rule
        assert int(row.locator(".number").inner_text()) == sum(one.label == name for one in found)
    assert {one.label for one in found} >= {"broad", ""}
    shown.tab.locator('.kinds li[data-label="broad"]').hover()
    shown.tab.locator(".overview .cell.echo").first.wait_for()
    marked = {
        (int(cell.get_attribute("data-layer")), int(cell.get_attribute("data-head")))
        for cell in shown.tab.locator(".overview .cell.echo").all()
    }
    assert marked == {(one.layer, one.head) for one in found if one.label == "broad"}
    shown.tab.mouse.move(0, 0)
    shown.tab.locator(".overview.echoing").wait_for(state="detached")


def test_what_is_not_known_comes_last_and_says_so(opened):  # noqa: F811
    own = layer_of(made_call(heads=2, queries=7, keys=7), index=0, query_text="target", key_text="target")
    cross = layer_of(made_call(heads=2, queries=7, keys=9), index=1, query_text="target", key_text="source")
    recording = recording_of(own, cross)
    shown = opened(recording).ready()
    choose(shown, "distance")
    assert order(shown)[2:] == [(1, 0), (1, 1)]
    last = shown.tab.locator(".overview .cell").last
    assert last.inner_text().split()[:2] == ["1.1", "–"]
    assert last.get_attribute("title").startswith("layer 1 head 1")
    assert last.get_attribute("title").endswith("distance not known")


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_overflows_at_any_width(opened, width):  # noqa: F811
    shown = opened(some_recording(heads=12), width=width).ready()
    choose(shown, "concentration")
    assert shown.tab.evaluate("document.documentElement.scrollWidth") <= width
    inside = """() => [...document.querySelectorAll('.under-map')].every((one) =>
      one.scrollWidth <= one.clientWidth + 1 && one.clientWidth > 40)"""
    assert shown.tab.evaluate(inside)
    # another width, another number in a row; the order stays
    before = order(shown)
    shown.tab.set_viewport_size({"width": width + 260, "height": 800})
    shown.tab.wait_for_timeout(100)
    assert order(shown) == before
    drawn = "[...document.querySelectorAll('.overview canvas')].every((one) => one.width > 0)"
    assert shown.tab.evaluate(drawn)


def test_a_thousand_heads_are_put_in_order_at_once(opened):  # noqa: F811
    recording = some_recording(layers=32, heads=32, queries=7)
    shown = opened(recording).ready()
    took = shown.tab.evaluate(
        """() => { const start = performance.now(); const select = document.querySelector('.sorting select');
        select.value = 'entropy'; select.dispatchEvent(new Event('change')); return performance.now() - start; }"""
    )
    assert order(shown) == expected(recording, "entropy", largest=True)
    assert took < 3000, f"{took:.0f} ms"


def test_a_page_without_traits_has_no_order_to_choose(opened):  # noqa: F811
    from multihead.view.page import page

    text, changed = re.subn(r', "traits": \{.*?\}', "", page(some_recording(mask=masks.causal())))
    if not changed:
        text, changed = re.subn(r',"traits":\{.*?\}', "", page(some_recording(mask=masks.causal())))
    assert changed == 3
    shown = opened(text).ready()
    assert shown.tab.locator(".sorting").is_hidden()
    assert len(order(shown)) == 15


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong_with_maps_in_an_order(visit, axe, scheme):  # noqa: F811
    tab = ready(visit(some_recording(), color_scheme=scheme))
    tab.get_by_label("order of the maps").select_option("entropy")
    tab.get_by_text("kinds of heads").click()
    assert violations(tab, axe) == []
    # nor is what stands under a map there for the eye alone
    assert re.match(r"\d\.\d \d\.\d\d", tab.get_by_role("gridcell").first.inner_text().replace("\n", " "))
