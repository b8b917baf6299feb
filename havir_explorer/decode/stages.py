"""Work in a few long stages: what a finished one made lies in a file until all are done, so that a killed run loses one stage at most."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from havir_explorer.decode.files import whole

Progress = Callable[[float, str], None]
"""Called with the share done in [0, 1] and a line of text; raising stops the work."""


class Stages:
    """The stages of one piece of work.

    Parameters
    ----------
    folder : Path
        Where finished stages lie.
    identity : str
        Says what the work is; a stage of other work is done again.
    progress : callable, optional
    resume : bool
        Use the stages that the folder holds.
    """

    def __init__(self, folder: Path, identity: str, progress: Progress | None, *, resume: bool) -> None:
        self._folder, self._progress, self._resume = folder, progress, resume
        self._identity = hashlib.sha256(identity.encode()).hexdigest()

    def tick(self, low: float, high: float, line: str) -> Callable[[float], None]:
        """Return what reports the share of a stage that is ``low`` to ``high`` of the whole."""

        def show(share: float) -> None:
            if self._progress:
                self._progress(low + (high - low) * share, line)

        return show

    def kept(self, name: str, make: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return what a stage made, from its file or by making it now.

        Raises
        ------
        OutputError
            The disk is full or the folder cannot be written.
        """
        file = self._file(name)
        found = self._read(file) if self._resume else None
        if found is not None:
            return found
        made = [part.cpu().contiguous() for part in make()]
        with whole(file) as (part,):
            save_file({f"{place:03d}": value for place, value in enumerate(made)}, part, metadata={"identity": self._identity})
        return made

    def clear(self) -> None:
        """Remove the files."""
        for file in self._folder.glob(self._file("*").name):
            file.unlink()

    def _file(self, name: str) -> Path:
        return self._folder / f"unfinished-{name}.safetensors"

    def _read(self, file: Path) -> list[Tensor] | None:
        try:
            with safetensors.safe_open(file, "pt") as opened:
                same = (opened.metadata() or {}).get("identity") == self._identity
                return [opened.get_tensor(name) for name in sorted(opened.keys())] if same else None
        except (OSError, safetensors.SafetensorError):
            return None
