"""The sizes of an attention, and the axes of what is measured of it, in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of the attention that a mask is asked about."""

    batch: int
    heads: int
    queries: int
    keys: int

    @property
    def offset(self) -> int:
        """Position of query 0 among the keys."""
        return self.keys - self.queries


AXES: dict[str, tuple[str, ...]] = {
    "lse": ("batch", "head", "query"),
    "max_score": ("batch", "head", "query"),
    "entropy": ("batch", "head", "query"),
    "visible": ("batch", "head", "query"),
    "top_weights": ("batch", "head", "query", "rank"),
    "top_keys": ("batch", "head", "query", "rank"),
    "received": ("batch", "head", "key"),
    "received_mean": ("batch", "head", "key"),
    "offsets": ("batch", "head", "bin"),
    "offset_edges": ("edge",),
    "blocks": ("batch", "head", "query_block", "key_block"),
    "block_peaks": ("batch", "head", "query_block", "key_block"),
    "block_size": ("side",),
    "rows": ("batch", "head", "row", "key"),
    "row_queries": ("row",),
    "columns": ("batch", "head", "query", "column"),
    "column_keys": ("column",),
    "sink": ("batch", "head", "query"),
}
"""The axes of each statistic but a user's own, in words."""

OWN_AXES = {"row_statistics": ("batch", "head", "query"), "column_statistics": ("batch", "head", "key")}
"""Under which name the answers of each kind stand among the measurements, and their axes."""


def axes_of(name: str) -> tuple[str, ...]:
    """The axes of a statistic, in words, by the names of :meth:`multihead.Measurements.named`.

    Raises:
        KeyError: there is no such statistic.
    """
    kind, dot, own = name.partition(".")
    if dot and own.isidentifier():
        return OWN_AXES[kind]
    return AXES[name]
