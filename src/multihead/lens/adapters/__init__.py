"""One file for each kind of host: what its arguments mean, as an :class:`~multihead.core.AttentionCall`."""
