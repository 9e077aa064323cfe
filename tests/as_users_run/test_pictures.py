"""Pictures of wrong types, as people meet them who run no type checker."""

import numpy as np
import pytest

from multihead.view import Frames, Picture


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Picture(None, (3.0, 4)), TypeError, "grid contains 3.0, which is no whole number"),
        (lambda: Picture(None, 14), TypeError, r"grid=14 is no list of numbers: say grid=\[14\]"),
        (lambda: Picture(None, "14x14"), TypeError, "grid='14x14' is no list of numbers"),
        (lambda: Picture(None, (3, 4, 3)), ValueError, "grid has 3 numbers, expected two: rows and columns"),
        (lambda: Picture(None, (3, 4), 1.5), TypeError, "first=1.5 is no whole number"),
        (lambda: Picture(None, (3, 4), first=True), TypeError, "first=True is no whole number"),
        (lambda: Picture(None, (3, 4), last=None), TypeError, "last=None is no whole number"),
        (lambda: Frames("0.02"), TypeError, "seconds_per_frame='0.02' is no number"),
        (lambda: Frames(True), TypeError, "seconds_per_frame=True is no number"),
        (lambda: Frames(None), TypeError, "seconds_per_frame=None is no number"),
    ],
)
def test_what_is_no_picture_is_refused(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_numbers_of_other_libraries_are_numbers():
    assert Picture(None, (np.int64(3), np.int32(4)), np.int64(2)).grid == (3, 4)
    assert Picture(None, [3, 4]).grid == (3, 4)
    assert Frames(np.float32(0.5)).seconds_per_frame == 0.5
    assert Frames(2).names(2) == ["0.00 s", "2.00 s"]
