"""The folder of what is cached between runs."""

import os
from pathlib import Path

from transferkit.errors import UserError

ADVICE = "name another place with the variable TRANSFERKIT_CACHE, or --cache-dir where there is one"


def default_cache_dir() -> Path:
    """Return the user's cache folder for transferkit. Raises UserError where there is no home."""
    base = os.environ.get("TRANSFERKIT_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        raise UserError("there is no home folder to keep caches in", remedy=ADVICE) from None
    return root if os.environ.get("TRANSFERKIT_CACHE") else root / "transferkit"
