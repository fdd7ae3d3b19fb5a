"""Where downloads, drawn samples and embeddings are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The project's folder in the user's cache: `$XDG_CACHE_HOME/catdog-pyfunc`, by default `~/.cache/catdog-pyfunc`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "catdog-pyfunc"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
