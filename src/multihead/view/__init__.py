"""Pictures of a recording: a page for the browser, a table for the terminal."""

from multihead.view.page import page, write_page

__all__ = ["page", "write_page"]
