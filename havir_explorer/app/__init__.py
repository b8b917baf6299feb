"""The notebook app: widgets that show and ask, and never compute."""

from __future__ import annotations

from havir_explorer.app.explorer import Explorer

__all__ = ["Explorer"]
