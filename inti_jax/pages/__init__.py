"""Make pages of HTML that are one file each: they open from disk, and ask no network for anything.

`page` renders the templates in `templates/` and writes the result; `pictures` makes pictures that a page
holds. All pages extend `base.html`, which has the style for light and dark screens of any width.
"""

from inti_jax.pages.page import render, write

__all__ = ["render", "write"]
