"""What may be asked, and what is refused."""

import pytest

from multihead.core import Statistics, power_of_two_edges
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
    ("options", "message"),
    [
        ({"top": -1}, "top=-1 is negative"),
        ({"blocks": (0, 3)}, r"blocks=\(0, 3\) is no pair of positive sizes"),
        ({"offsets": (3, 3)}, "are no bin edges"),
        ({"offsets": (3,)}, "are no bin edges"),
    ],
)
def test_refuses_with_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        Statistics(**options)


def test_rows_and_columns_must_be_there():
    sizes = Sizes(1, 1, 7, 11)
    Statistics(rows=(6,), columns=(10,)).check(sizes)
    with pytest.raises(ValueError, match="rows 7 out of range: valid are 0 to 6"):
        Statistics(rows=(7,)).check(sizes)
    with pytest.raises(ValueError, match="columns 11 and 12 out of range: valid are 0 to 10"):
        Statistics(columns=(11, 0, 12)).check(sizes)
    with pytest.raises(ValueError, match="names one twice"):
        Statistics(rows=(1, 1)).check(sizes)
