"""What the document and the terminal say about heads is what the recording says."""

import dataclasses
import io
import json
import re

import pytest
import torch
from rich.console import Console

from multihead import masks
from multihead.core import Statistics
from multihead.front.document import NUMBERS
from multihead.recording.traits import label
from multihead.view.heads import described, head_kinds, quick_traits
from multihead.view.page import page
from multihead.view.terminal import links_table, summary
from tests.view.made import layer_of, made_call, recording_of


def document_of(html: str) -> dict:
    return json.loads(re.search(r'id="multihead-document">(.*?)</script>', html, re.DOTALL)[1])


def looking_back(queries=9):
    """Head 0 looks at the token before, head 1 everywhere."""
    call = made_call(heads=2, queries=queries, keys=queries, dim=queries, scale=1.0, mask=masks.causal())
    call.q.zero_()
    call.k.copy_(torch.eye(queries).expand_as(call.k))
    call.q[:, 0, 1:] = 40 * torch.eye(queries)[:-1]
    return recording_of(layer_of(call))


def test_each_layer_of_the_document_has_its_traits():
    own = layer_of(made_call(heads=3, queries=11, keys=11, mask=masks.causal()), index=0, heads=[2, 0])
    cross = layer_of(made_call(heads=3, queries=11, keys=13), index=4, query_text="text", key_text="source")
    recording = recording_of(own, cross)
    layers = document_of(page(recording))["layers"]
    found = iter(recording.traits())
    for layer in layers:
        assert set(layer["traits"]) == {"label", "entropy", "distance", "sink", "concentration"}
        for place, head in enumerate(layer["heads"]):
            one = next(found)
            assert (one.layer, one.head) == (layer["index"], head)
            assert {name: values[place] for name, values in layer["traits"].items()} == {
                "label": label(one),
                **{name: getattr(one, name) for name in NUMBERS},
            }
    assert layers[1]["traits"]["distance"] == [None] * 3


def test_the_sequence_that_is_shown_is_the_one_described():
    recording = recording_of(layer_of(made_call(batch=2, queries=11, keys=11)))
    first, second = (document_of(page(recording, item=item))["layers"][0]["traits"] for item in range(2))
    assert second["entropy"] == [one.entropy for one in recording.traits(item=1)] != first["entropy"]


def test_entries_keep_what_they_have():
    recording = looking_back()
    entry = {"index": 0, "heads": [0, 1]}
    (found,) = described([entry], recording, 0)
    assert found == {**entry, "traits": found["traits"]}
    assert "traits" not in entry


def test_of_many_pairs_only_what_was_recorded_is_said():
    call = made_call(heads=2, queries=11, keys=11)
    rich = layer_of(call, index=1, statistics=Statistics(columns=(0,)))
    # what has no axis of heads, layer_of leaves out
    statistics = dataclasses.replace(rich.statistics, column_keys=torch.tensor([0]))
    recording = recording_of(layer_of(call), dataclasses.replace(rich, statistics=statistics))
    for most, measured in ((2 * 2 * 121, True), (2 * 2 * 121 - 1, False)):
        light, rich = quick_traits(recording, 0, most=most)
        assert all((one.distance is not None) == (one.concentration is not None) == measured for one in light + rich)
        assert all(one.entropy is not None for one in light + rich)
        assert [one.sink is not None for one in (light[0], rich[0])] == [measured, True]


def printed(renderable) -> str:
    file = io.StringIO()
    Console(file=file, width=90, color_system=None, highlight=False).print(renderable)
    return file.getvalue()


def test_in_the_terminal_a_kind_stands_beside_each_head():
    recording = looking_back()
    assert head_kinds(recording, 0) == {(0, 0): "previous token", (0, 1): "broad"}
    lines = printed(summary(recording, 5)).splitlines()
    row = next(line for line in lines if line.split()[:3] == ["0", "0", "text4"])
    assert row.rstrip().endswith("previous token")
    assert any(line.rstrip().endswith("broad") for line in lines)


@pytest.mark.parametrize("kinds", [None, {}])
def test_without_kinds_nothing_is_said(kinds):
    links = looking_back().top(5, count=2)
    text = printed(links_table(links, kinds=kinds))
    assert "previous" not in text
    assert ("kind" in text) == (kinds is not None)
