"""Pictures of a recording: a page for the browser, a table for the terminal."""

from multihead.view.page import page, write_page
from multihead.view.pictures import Frames, Picture

__all__ = ["Frames", "Picture", "page", "write_page"]
