"""The front of a page: what it shows of a recording before torch is there. ``docs/server.md``."""
