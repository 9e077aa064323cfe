"""What may be asked, and what is refused."""

import numpy as np
import pytest
import torch

from multihead.core import Statistics, power_of_two_edges
from multihead.core.statistics import check_statistics
from multihead.masks import Sizes


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (7, 11), (11, 7), (1, 13), (64, 64), (65, 64), (3, 1)])
def test_power_of_two_edges_cover_every_distance(queries, keys):
    edges = power_of_two_edges(Sizes(1, 1, queries, keys))
    assert list(edges) == sorted(set(edges))
    distances = [query + keys - queries - key for query in range(queries) for key in range(keys)]
    assert edges[0] <= min(distances)
    assert max(distances) < edges[-1]
    assert {0, 1} <= set(edges)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top": -1}, ValueError, "top=-1 is negative"),
        ({"top": 2.5}, TypeError, r"top=2\.5 is no whole number"),
        ({"top": True}, TypeError, "top=True is no whole number"),
        ({"rows": 3}, TypeError, r"rows=3 is no list of numbers: say rows=\[3\]"),
        ({"rows": [1.7]}, TypeError, r"rows contains 1\.7, which is no whole number"),
        ({"columns": torch.tensor([True, False])}, TypeError, r"columns contains tensor\(True\)"),
        ({"blocks": (0, 3)}, ValueError, r"blocks=\(0, 3\) is no pair of positive sizes: say blocks=\(64, 64\)"),
        ({"blocks": (2, 3, 5)}, ValueError, r"blocks=\(2, 3, 5\) is no pair of positive sizes"),
        ({"blocks": 64}, TypeError, r"blocks=64 is no pair of sizes: say blocks=\(64, 64\)"),
        ({"blocks": "64"}, TypeError, "blocks='64' is no pair of sizes"),
        ({"blocks": (2.5, 3)}, TypeError, r"blocks contains 2\.5, which is no whole number"),
        (
            {"block_peaks": True},
            ValueError,
            r"block_peaks=True without blocks: say how large a block is, for example blocks=\(64, 64\)\.$",
        ),
        ({"offsets": (3, 3)}, ValueError, "are no bin edges: give at least two ascending distances"),
        ({"offsets": (3,)}, ValueError, "are no bin edges"),
        ({"offsets": 5}, TypeError, "offsets=5 are no bin edges"),
        ({"offsets": (0, 1.5)}, TypeError, r"offsets contains 1\.5, which is no whole number"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_refuses_with_a_sentence(options, error, message):
    with pytest.raises(error, match=message):
        Statistics(**options)


@pytest.mark.usefixtures("as_users_run")
def test_numbers_of_other_libraries_are_numbers():
    statistics = Statistics(
        rows=np.array([2, 3]), columns=torch.tensor([5]), top=np.int64(7), blocks=[2, np.int8(3)], offsets=range(-1, 3)
    )
    assert statistics == Statistics(rows=(2, 3), columns=(5,), top=7, blocks=(2, 3), offsets=(-1, 0, 1, 2))
    assert type(statistics.top) is int
    assert Statistics.every(rows=range(2)).rows == (0, 1)
    with pytest.raises(TypeError, match=r"rows=3 is no list of numbers: say rows=\[3\]"):
        Statistics.every(rows=3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"top": 8}, r"statistics is a dict, expected a multihead\.Statistics: pass Statistics\(\*\*statistics\)"),
        (None, r"statistics is None, expected .*: pass for example Statistics\(top=8\)"),
        (["entropy"], "statistics is a list"),
        (Statistics, "statistics is .* type"),
    ],
)
def test_what_are_no_statistics(value, message):
    with pytest.raises(TypeError, match=message):
        check_statistics(value)
    check_statistics(Statistics())


def test_rows_and_columns_must_be_there():
    sizes = Sizes(1, 1, 7, 11)
    Statistics(rows=(6,), columns=(10,)).check(sizes)
    with pytest.raises(ValueError, match="rows 7 out of range: valid are 0 to 6"):
        Statistics(rows=(7,)).check(sizes)
    with pytest.raises(ValueError, match="columns 11 and 12 out of range: valid are 0 to 10"):
        Statistics(columns=(11, 0, 12)).check(sizes)
    with pytest.raises(ValueError, match="names one twice"):
        Statistics(rows=(1, 1)).check(sizes)
