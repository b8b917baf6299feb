"""What ``havir train`` can be asked for: sizes and lengths, mixed responses, edges in pixels, other voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from havir_explorer.cli.show import one_of
from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import edges, mixco, split
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.options import Options, Precision
from havir_explorer.decode.presets import Size, changed, preset
from havir_explorer.decode.split import Choice
from havir_explorer.decode.targets import TargetSource
from havir_explorer.diffuse.model import VersatileDiffusion, resized
from havir_explorer.errors import RequestError, nearest

WHERE = ("latents", "pixels")
_MAPS = 36
"""What a decoded picture's gradient needs, in feature maps of the decoder's narrowest block; measured at 256 px (benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Parameters
    ----------
    mixco : bool
        Mix brain responses for the first third of the run.
    pixels : bool
        Compare edges in decoded pictures instead of latents.
    choice : Choice or None
        Which voxels each branch reads; None leaves it as it is.
    """

    mixco: bool = False
    pixels: bool = False
    choice: Choice | None = None

    def options(self, base: Options) -> Options:
        """Return ``base`` with what was asked for."""
        mixed = replace(base, mixco=mixco.SHARE) if self.mixco else base
        drawn = replace(mixed, edges=0.0, pixel_edges=edges.WEIGHT) if self.pixels else mixed
        return replace(drawn, choice=self.choice) if self.choice else drawn


def asked(*, mixco: bool, edges: str, split_name: str | None, rois: str | None) -> Asked:
    """Return what the command line's words mean.

    Raises
    ------
    RequestError
        No such place for edges, no such split, or a list of ROIs that names none.
    """
    if edges not in WHERE:
        msg = f"--edges takes latents or pixels; got {edges!r}; {nearest(edges, WHERE, 1)}"
        raise RequestError(msg)
    named = split_name is not None or rois is not None
    return Asked(mixco, edges == "pixels", split.parse(split_name, rois) if named else None)


def pixel_edges(tree: Dataset, generator: VersatileDiffusion) -> PixelEdges:
    """Return what edges are compared with in pixels: the generator's decoder, and stimuli at its side.

    The decoder's blocks keep nothing for the gradient but their inputs: at 512 px 5 GB instead of 8, for a third more time.
    """
    generator.vae.enable_gradient_checkpointing()
    needs = _MAPS * int(generator.vae.config.block_out_channels[0]) * generator.side**2 * generator.vae.dtype.itemsize
    return PixelEdges(generator.decode_pixels, lambda nsd_ids: resized(tree.stimuli(nsd_ids), generator.side), needs)


@dataclass(frozen=True)
class Shape:
    """The sizes, lengths and number format asked for; None is the size's own.

    Parameters
    ----------
    size : {'small', 'full'}
    file : Path, optional
        Changes the size's options; what else is given here changes the file's.
    epochs : float, optional
    batch, patience : int, optional
    precision : {'no', 'bf16', 'fp16'}, optional
    """

    size: Size = "small"
    file: Path | None = None
    epochs: float | None = None
    batch: int | None = None
    patience: int | None = None
    precision: Precision | None = None

    def options(self, store: TargetSource, device: str) -> Options:
        """Return the options for these targets on this device; raises as :meth:`changed`."""
        options = preset(self.size, store.shapes.latents)
        return self.changed(replace(options, precision="bf16") if self.size == "full" and device.startswith("cuda") else options)

    def changed(self, options: Options) -> Options:
        """Return ``options`` with what the file and then the rest say otherwise.

        Raises
        ------
        RequestError
            The file cannot be read, names what is no option, or gives a value that is out of range.
        """
        options = options if self.file is None else changed(options, self.file)
        return replace(
            options,
            epochs=options.epochs if self.epochs is None else self.epochs,
            batch=options.batch if self.batch is None else self.batch,
            patience=options.patience if self.patience is None else self.patience,
            precision=self.precision or options.precision,
        )


def shape(size: str, file: Path | None, *, epochs: float | None, batch: int | None, patience: int | None, precision: str | None) -> Shape:
    """Return what the command line's words mean.

    Raises
    ------
    RequestError
        No such size or number format, or a number that is out of range.
    """
    for name, value, least in (("epochs", epochs, 0.0), ("batch", batch, 1), ("patience", patience, 0)):
        if value is not None and value < least:
            msg = f"--{name} must be {least:g} or more; got {value}"
            raise RequestError(msg)
    known = None if precision is None else one_of("--precision", precision, get_args(Precision))
    return Shape(one_of("--size", size, get_args(Size)), file, epochs, batch, patience, known)
