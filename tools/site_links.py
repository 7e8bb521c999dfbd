"""Hook of the site: a link to a file outside docs/ becomes the name of the file, for the site holds no sources."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[hgru2.py](../src/…/hgru2.py)` is read as `src/…/hgru2.py`."""
    return OUTSIDE.sub(lambda found: f"`{found[2]}`", markdown)
