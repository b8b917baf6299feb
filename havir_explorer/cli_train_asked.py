"""What ``havir train`` can be asked for beyond sizes and steps: mixed responses, edges in pixels, other voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import edges, mixco, split
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.options import Options
from havir_explorer.decode.split import Choice
from havir_explorer.diffuse.model import VersatileDiffusion, resized
from havir_explorer.errors import RequestError, nearest

WHERE = ("latents", "pixels")


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
    """Return what edges are compared with in pixels: the generator's decoder, and stimuli at its side."""
    return PixelEdges(generator.decode_pixels, lambda nsd_ids: resized(tree.stimuli(nsd_ids), generator.side))
