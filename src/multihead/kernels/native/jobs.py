"""How the queries of a call are cut: in jobs of one thread, and in strands whose sums are kept apart."""

from itertools import pairwise

import torch
from torch import Tensor

UNITS = 64
"""Units of work wanted where sums over queries are to be kept apart."""

PARTIAL = 1 << 25
"""Most bytes of sums that are kept apart."""


class Jobs:
    """Jobs of at most ``most`` queries: each holds whole rows of blocks, or is part of one row of blocks.

    Args:
        count: of queries.
        most: queries of a job.
        height: queries of a block; 1 where blocks do not matter.
    """

    def __init__(self, count: int, most: int, height: int = 1) -> None:
        self.height = height
        self.whole = height <= most
        """Whether each job holds whole rows of blocks."""
        if self.whole:
            starts = list(range(0, count, most // height * height))
        else:
            starts = [start for top in range(0, count, height) for start in range(top, min(top + height, count), most)]
        self.starts = [*starts, count]
        """Where each job begins, and the end."""
        self.count = count

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def longest(self) -> int:
        """The most queries of a job."""
        return max((stop - start for start, stop in pairwise(self.starts)), default=0)

    def parts(self, limit: float) -> list[range]:
        """Jobs that are done together: as many as hold no more than ``limit`` queries, and at least one."""
        found, first = [], 0
        for job in range(1, len(self) + 1):
            if job == len(self) or self.starts[job + 1] - self.starts[first] > limit:
                found.append(range(first, job))
                first = job
        return found

    def pieces(self) -> Tensor:
        """For each piece of a row of blocks that a job sums up on its own, the row of blocks to which it belongs."""
        if self.whole:
            return torch.arange(-(-self.count // self.height))
        return torch.tensor(self.starts[:-1]) // self.height


def strands(jobs: int, heads: int, floats: int) -> int:
    """Into how many sums, added up in the end, the queries of a head go: a matter of sizes, not of threads.

    Args:
        jobs: that are done together.
        heads: of all sequences.
        floats: numbers of one head's sums.
    """
    return max(1, min(jobs, -(-UNITS // heads), PARTIAL // max(1, 8 * heads * floats)))
