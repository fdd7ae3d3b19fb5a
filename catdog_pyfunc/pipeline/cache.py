"""The folder that keeps downloads, the synthetic sample, embeddings and checkpoints between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/catdog-pyfunc` (by default `~/.cache/catdog-pyfunc`), created if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "catdog-pyfunc"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
