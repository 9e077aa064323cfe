"""Wrong types, as users meet them: without the checks of annotations."""

import pytest

from tests.view.made import layer_of, made_call, recording_of


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kind": 3}, ValueError, "kind=3 is none of 'heads', 'map', 'text' and 'links'"),
        ({"layer": "0"}, TypeError, "layer='0' is no whole number"),
        ({"layer": 0, "heads": 1}, TypeError, r"heads=1 is no list of numbers: say heads=\[1\]"),
        ({"queries": slice(3)}, TypeError, r"queries=.* say for example queries=range\(3\)"),
        ({"keys": ["the"]}, TypeError, "keys contains 'the'"),
        ({"token": 1.5}, TypeError, "token=1.5 is neither a word nor a position"),
        ({"item": "first"}, TypeError, "item='first' is no whole number"),
        ({"scale": 2}, ValueError, "scale=2 is none of"),
        ({"size": "wide"}, ValueError, "size='wide' is neither a width nor"),
        ({"title": 5}, TypeError, "title=5 is no text"),
    ],
)
def test_what_is_of_the_wrong_kind(options, error, words):
    recording = recording_of(layer_of(made_call(heads=2, queries=5, keys=5)))
    with pytest.raises(error, match=words):
        recording.figure(**options)
