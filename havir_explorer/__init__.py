"""See what a brain response looks like: reconstructions, ROI masks and the cortex that made them.

The face of the package, loaded when first used, so that importing it costs next to nothing. Start reading at
:mod:`havir_explorer.pipeline`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from havir_explorer.app import Explorer
    from havir_explorer.batch import run_many
    from havir_explorer.data import open_dataset
    from havir_explorer.errors import HavirError
    from havir_explorer.pipeline import run
    from havir_explorer.records import Mask, Reconstruction, Request, Settings

__version__ = "0.1.0"
__all__ = ["Explorer", "HavirError", "Mask", "Reconstruction", "Request", "Settings", "open_dataset", "run", "run_many"]

_HOMES = {
    "Explorer": "app",
    "HavirError": "errors",
    "Mask": "records",
    "Reconstruction": "records",
    "Request": "records",
    "Settings": "records",
    "open_dataset": "data",
    "run": "pipeline",
    "run_many": "batch",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted([*__all__, "__version__"])
