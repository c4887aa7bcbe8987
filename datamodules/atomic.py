"""Files that exist only when they are whole."""

import os
from pathlib import Path


def write_whole(path: str | os.PathLike, text: str) -> Path:
    """Write the file, or nothing where that fails on the way; its folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    # A path that is not UTF-8 may stand in a config, and half a surrogate pair in a text.
    beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    os.replace(beside, path)
    return path
