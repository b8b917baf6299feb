"""Where numbers come from: the :class:`~havir_explorer.data.dataset.Dataset` protocol, its readers, and the teaching world."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from havir_explorer.data import algonauts, mindeye
from havir_explorer.data.dataset import Dataset
from havir_explorer.data.nsd import MARKER, NSD
from havir_explorer.errors import DataMissing, RequestError
from havir_explorer.paths import cache_folder

__all__ = ["DEMO", "WORLD", "demo_folder", "open_dataset"]

DEMO = "demo"
"""The name of the teaching world."""
WORLD = "demo-v1"
"""Its folder in the cache; a change of its content takes another number."""


def demo_folder() -> Path:
    """Return where the teaching world lies, or would lie."""
    return cache_folder() / WORLD


def open_dataset(name_or_path: str | Path = DEMO, *, progress: Callable[[float, str], None] | None = None) -> Dataset:
    """Open a data set; the same tree is opened once a process.

    Parameters
    ----------
    name_or_path : str or Path
        ``"demo"`` for the teaching world, which is built in the cache folder when it is not there; anything else is the folder of an NSD tree,
        of MindEye's release or of the Algonauts 2023 challenge, told by its files. An NSD tree's folder may be
        followed by ``#`` and the name of a convention (:mod:`~havir_explorer.data.conventions`): ``/data/nsd#b2``.
    progress : callable, optional
        Called with the share done and a phrase while the teaching world is built.

    Returns
    -------
    Dataset

    Raises
    ------
    DataMissing, DataInvalid
        No such folder, or not an NSD tree.
    RequestError
        No such convention, or one for responses that come normalised.
    OutputError
        The teaching world cannot be written.
    """
    place, convention = _parts(str(name_or_path))
    if place == DEMO:
        return _open(_built(demo_folder(), progress), convention)
    folder = Path(place).expanduser().resolve()
    if not place or not folder.is_dir():
        msg = f"no data set at {str(name_or_path)!r}: {folder} is not a folder; give the folder of an NSD tree, or 'demo' for the teaching world"
        raise DataMissing(msg)
    return _open(folder, convention)


def _parts(name: str) -> tuple[str, str]:
    """Split a data set's name into the place and the convention; a folder may have a ``#`` in its own name."""
    place, _, convention = name.rpartition("#")
    return (place, convention) if place and not Path(name).expanduser().is_dir() else (name, "")


def _built(folder: Path, progress: Callable[[float, str], None] | None) -> Path:
    """Write the teaching world unless it is there; it appears under its name only when complete."""
    if not (folder / MARKER).is_file():
        from havir_explorer.data.demo.write import write_world  # only a first start needs the world's anatomy and nilearn

        write_world(folder, progress or _silent)
    return folder.resolve()


def _silent(_share: float, _phrase: str) -> None:
    """Tell nobody."""


@lru_cache(maxsize=8)
def _open(folder: Path, convention: str) -> Dataset:
    """Open a tree once, with the reader that knows its files; a failed attempt is not remembered."""
    for known, reader in ((mindeye.recognises, mindeye.MindEye), (algonauts.recognises, algonauts.Algonauts)):
        if not (folder / "nsddata" / "experiments").is_dir() and known(folder):
            if convention:
                msg = f"the responses in {folder} come normalised ({reader.convention}); leave '#{convention}' out"
                raise RequestError(msg)
            return reader(folder)
    return NSD(folder, convention=convention or None)
