"""Statistics of a user's own that are none: what is said where nothing checks types first."""

import pytest

import multihead as mh


class Given(mh.RowStatistic):
    """Any."""

    name = "given"

    def of(self, tile):
        return tile.weights.sum(-1)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Given(), r"own is a Given, expected a tuple of statistics: say own=\(Given\(...\),\)"),
        (3, r"own is an int, expected a tuple of statistics: say own=\(MassOn\(...\),\)"),
        ((Given,), r"own holds the class Given, expected one of its objects: Given\(...\)"),
        (["given"], "own holds a str, expected a RowStatistic or a ColumnStatistic"),
    ],
)
def test_own_statistics_that_are_none(own, message):
    with pytest.raises(TypeError, match=message):
        mh.Statistics(own=own)


def test_a_list_of_own_statistics():
    assert len(mh.Statistics(own=[Given()]).own) == 1
