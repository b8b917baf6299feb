"""Where this package keeps what it makes, where its shipped weights lie, and whether files have changed."""

from __future__ import annotations

import hashlib
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


def shipped_weights() -> Path:
    """Return the folder of the teaching world's weights: ``versatile-diffusion``, and ``havir`` with one folder a subject."""
    return Path(__file__).parent / "data" / "demo" / "weights"


def stamp(*folders: Path) -> str:
    """Return a digest of the places, names, sizes and times of the files in these folders, two levels deep; 16 hex characters.

    Files replaced by others, even of the same size, change it; nothing is read. Two levels are what a checkpoint has, and a folder may be any.
    """
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(f"{folder.resolve()}\n".encode())
        for path in sorted(path for level in ("*", "*/*") for path in folder.glob(level) if path.is_file()):
            about = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
