"""Where this package keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Return the folder for everything that can be made again: the teaching world, prepared responses, results.

    Returns
    -------
    Path
        ``HAVIR_CACHE`` when set and not empty, otherwise the user's cache folder of the operating system. It may not exist yet.
    """
    chosen = os.environ.get("HAVIR_CACHE", "")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("havir_explorer")
