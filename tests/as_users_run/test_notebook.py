"""What a widget is given by people, checked by its own words."""

import pytest

from multihead.view.notebook import widget
from tests.view.made import layer_of, made_call, recording_of


@pytest.mark.parametrize("height", ["tall", 300.0, None, True])
def test_a_height_that_is_no_number(height):
    recording = recording_of(layer_of(made_call(queries=11, keys=11)))
    with pytest.raises(TypeError, match=f"height={height!r} is no whole number"):
        widget(recording, height=height)
