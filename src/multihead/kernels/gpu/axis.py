"""How queries and keys are cut in tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """How queries or keys are cut in tiles, so that no block of the overview map shares a tile with half a block.

    ``group`` tokens are ``tiles`` tiles of ``step`` tokens or fewer, and hold ``blocks`` blocks.
    """

    group: int
    step: int
    tiles: int
    blocks: int
    length: int
    """Tokens in all."""
    block: int
    """Tokens of a block."""

    @classmethod
    def of(cls, length: int, block: int, side: int) -> "Axis":
        """Tiles of at most ``side`` of ``length`` tokens, in blocks of ``block``."""
        if block <= side:
            blocks = side // block
            return cls(blocks * block, blocks * block, 1, blocks, length, block)
        tiles = -(-block // side)
        return cls(block, -(-block // tiles), tiles, 1, length, block)

    @property
    def count(self) -> int:
        """Tiles in all."""
        return -(-self.length // self.group) * self.tiles

    @property
    def cells(self) -> int:
        """Blocks along this axis."""
        return -(-self.length // self.block)

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each tile that holds a token starts and stops."""
        numbers = torch.arange(self.count, device=device)
        group = numbers // self.tiles * self.group
        starts = group + numbers % self.tiles * self.step
        stops = torch.minimum(starts + self.step, group + self.group).clamp_max(self.length)
        return starts, torch.maximum(stops, starts)
