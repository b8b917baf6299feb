"""Conditions from any decoder in a file, pictures of them out: how other code uses this generator without importing it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from havir_explorer.diffuse.guidance import Unconditional
from havir_explorer.diffuse.memory import Notice, fitting, in_batches
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.paint import paint
from havir_explorer.diffuse.sampler import generate
from havir_explorer.errors import RequestError
from havir_explorer.records import Decoded, FloatArray, Settings, UInt8Array

_AXES = {"latents": 4, "image_embeds": 3, "text_embeds": 3, "uncond_image_embeds": 3, "uncond_text_embeds": 3, "noise": 4}
_NEEDED = ("latents", "image_embeds", "text_embeds")


@dataclass(frozen=True, eq=False)
class Given:
    """What a decoder hands over.

    Parameters
    ----------
    decoded : Decoded
        B rows.
    unconditional : Unconditional or None
        What stands for "no condition"; None leaves it to the model.
    noise : float32 (B, 4, h, w) or None
        None leaves it to the seed.
    """

    decoded: Decoded
    unconditional: Unconditional | None
    noise: FloatArray | None

    def rows(self, chosen: slice) -> Given:
        """Return some of the rows."""
        decoded, without, noise = self.decoded, self.unconditional, self.noise
        some = Decoded(decoded.latents[chosen], decoded.image_embeds[chosen], decoded.text_embeds[chosen])
        if without is not None:
            without = Unconditional(*(value if len(value) == 1 else value[chosen] for value in without))
        return Given(some, without, None if noise is None else noise[chosen])


def read(path: Path) -> Given:
    """Read an ``.npz`` file; nothing in it is unpickled.

    Parameters
    ----------
    path : Path
        Holds ``latents`` (B, 4, h, w), already times the autoencoder's scaling factor, ``image_embeds`` (B, n_image_tokens, width),
        ``text_embeds`` (B, n_text_tokens, width), and optionally ``uncond_image_embeds`` with ``uncond_text_embeds`` (of 1 or B rows) and
        ``noise`` (B, 4, h, w); floating point, finite.

    Raises
    ------
    RequestError
        The file is absent, not ``.npz``, lacks a key, has one too many, or an array has another type, number of axes or number of rows.
    """
    arrays = _arrays(path)
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        msg = f"{path} lacks {', '.join(missing)}; it must hold {', '.join(_NEEDED)}"
        raise RequestError(msg)
    if ("uncond_image_embeds" in arrays) != ("uncond_text_embeds" in arrays):
        msg = f"{path} holds one of uncond_image_embeds and uncond_text_embeds; give both or neither"
        raise RequestError(msg)
    rows = len(arrays["latents"])
    checked = {name: _checked(path, name, value, rows) for name, value in arrays.items()}
    without = Unconditional(checked["uncond_image_embeds"], checked["uncond_text_embeds"]) if "uncond_text_embeds" in checked else None
    return Given(Decoded(*(checked[name] for name in _NEEDED)), without, checked.get("noise"))


def draw(
    model: VersatileDiffusion,
    given: Given,
    settings: Settings,
    *,
    progress: Callable[[float, str], None] | None = None,
    on_notice: Notice | None = None,
) -> tuple[FloatArray, UInt8Array]:
    """Redraw every row with the same settings, as many at once as fit into memory.

    Every row starts from the noise of the one seed, so that a row is the same alone or among others.

    Parameters
    ----------
    model : VersatileDiffusion
    given : Given
    settings : Settings
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text; raising stops.
    on_notice : callable, optional
        Told in a sentence that memory ran out and how it goes on.

    Returns
    -------
    latents : float32 (B, 4, h, w)
        Final, scaled.
    pictures : uint8 (B, H, W, 3)
    """
    total = len(given.decoded)

    def work(places: range) -> tuple[FloatArray, UInt8Array]:
        some = given.rows(slice(places.start, places.stop))

        def on_step(done: int, count: int, _clean: torch.Tensor) -> None:
            if progress:
                progress((places.start + len(places) * done / count) / total, f"picture {places.start + 1} of {total}, step {done} of {count}")

        drawn = generate(model, some.decoded, [settings] * len(places), unconditional=some.unconditional, noise=some.noise, on_step=on_step)
        return drawn.latents.numpy(), paint(model, drawn.latents, on_notice=on_notice)

    parts = [part for _, part in in_batches(total, fitting(model, max(total, 1)), work, on_notice)]
    return np.concatenate([latents for latents, _ in parts]), np.concatenate([pictures for _, pictures in parts])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                msg = f"{path} holds one array; save the arrays {', '.join(_NEEDED)} with numpy.savez"
                raise RequestError(msg)
            unknown = [name for name in found.files if name not in _AXES]
            if unknown:
                msg = f"{path} holds {', '.join(unknown)}, which nobody reads here; it may hold {', '.join(_AXES)}"
                raise RequestError(msg)
            return {name: found[name] for name in found.files}
    except FileNotFoundError as fault:
        msg = f"cannot read {path}: there is no such file"
        raise RequestError(msg) from fault
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as fault:
        if isinstance(fault, RequestError):
            raise
        msg = f"{path} is not a readable .npz file of plain arrays ({str(fault).splitlines()[0]}); write it with numpy.savez"
        raise RequestError(msg) from fault


def _checked(path: Path, name: str, value: np.ndarray, rows: int) -> FloatArray:
    if not np.issubdtype(value.dtype, np.floating):
        msg = f"{name} in {path} is of type {value.dtype}; it must be floating point, such as float32"
        raise RequestError(msg)
    if value.ndim != _AXES[name]:
        msg = f"{name} in {path} has shape {value.shape}; it must have {_AXES[name]} axes, the first of them the pictures"
        raise RequestError(msg)
    if rows == 0:
        msg = f"{path} holds no picture: its latents have shape {value.shape}; give one row at least"
        raise RequestError(msg)
    if len(value) not in ((1, rows) if name.startswith("uncond") else (rows,)):
        msg = f"{name} in {path} has {len(value)} rows, its latents {rows}; give as many{', or one' if name.startswith('uncond') else ''}"
        raise RequestError(msg)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return _finite(path, name, value.astype(np.float32))


def _finite(path: Path, name: str, value: FloatArray) -> FloatArray:
    if not np.isfinite(value).all():
        row = int(np.argwhere(~np.isfinite(value))[0][0])
        msg = f"{name} in {path} holds a value that is not finite, in row {row}; check what was decoded there"
        raise RequestError(msg)
    return value
