"""Whole numbers as people give them."""

import numpy as np
import pytest
import torch

from multihead.counting import whole, whole_numbers


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
)
def test_a_whole_number_of_any_library(value):
    assert whole("top", value) == 3
    assert type(whole("top", value)) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2.5, r"top=2\.5 is no whole number\."),
        (8.0, r"top=8\.0 is no"),
        (True, "top=True is no"),
        (np.True_, "top=.*True.* is no"),
        (np.array(True), r"top=array\(True\) is no"),
        (torch.tensor(True), r"top=tensor\(True\) is no"),
        (torch.tensor(2.0), r"top=tensor\(2\.\) is no"),
        (torch.tensor([2]), r"top=tensor\(\[2\]\) is no"),
        (np.float64(2), r"top=.*2\.0.* is no"),
        (None, "top=None is no whole number"),
        ("2", "top='2' is no"),
    ],
)
def test_what_is_no_whole_number(value, message):
    with pytest.raises(TypeError, match=message):
        whole("top", value)


@pytest.mark.parametrize(
    "values",
    [[2, 3, 5], (2, 3, 5), np.array([2, 3, 5]), torch.tensor([2, 3, 5]), iter([2, np.int8(3), torch.tensor(5)])],
)
def test_a_list_of_any_kind(values):
    assert whole_numbers("rows", values) == (2, 3, 5)


def test_one_number_in_a_list_is_a_list():
    assert whole_numbers("rows", torch.tensor([5])) == whole_numbers("rows", np.array([5])) == (5,)
    assert whole_numbers("rows", range(2, 8, 5)) == (2, 7)
    assert whole_numbers("rows", []) == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3, r"rows=3 is no list of numbers: say rows=\[3\]\."),
        (np.int64(3), r"is no list of numbers: say rows=\[3\]\."),
        ("3", r"rows='3' is no list of numbers: say rows=\[3\]\."),
        (slice(3), r"rows=slice\(None, 3, None\) is no list of numbers: say for example rows=range\(3\)\."),
        (slice(None), r"say for example rows=range\(10\)\."),
        ({0: [1]}, r"rows=\{0: \[1\]\} is no list of numbers\."),
        (2.5, r"rows=2\.5 is no list"),
        (True, "rows=True is no list"),
        (None, "rows=None is no list"),
        (torch.tensor(2.5), r"rows=tensor\(2\.5000\) is no list"),
        ([1, 1.7], r"rows contains 1\.7, which is no whole number\."),
        ([[1]], r"rows contains \[1\], which is no whole number"),
        ([True], "rows contains True, which is no whole number"),
        (torch.tensor([True, False]), r"rows contains tensor\(True\), which is no whole number"),
        (torch.tensor([[1]]), r"rows contains tensor\(\[1\]\), which is no whole number"),
        ("abc", "rows='abc' is no list of numbers"),
    ],
)
def test_what_is_no_list_of_whole_numbers(values, message):
    with pytest.raises(TypeError, match=message):
        whole_numbers("rows", values)
