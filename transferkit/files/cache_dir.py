"""Where what is kept between runs lies on disk."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return the user's cache folder for transferkit."""
    base = os.environ.get("TRANSFERKIT_CACHE") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return root if os.environ.get("TRANSFERKIT_CACHE") else root / "transferkit"
