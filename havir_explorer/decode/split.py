"""Which voxels each branch reads: a named choice, its words, and the two masks it makes of a subject's atlas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from havir_explorer.data.dataset import Atlas
from havir_explorer.errors import RequestError, WeightsInvalid, nearest
from havir_explorer.records import BoolArray

SplitName = Literal["default", "takagi", "streams", "all"]
SPLIT = "spatial: nsdgeneral and V1v to hV4 of prf-visualrois; semantic: the rest of nsdgeneral and floc ROIs outside it, without V1v to hV4"
WORDS: dict[SplitName, str] = {
    "default": SPLIT,
    "takagi": "spatial: early of streams; semantic: ventral of streams",
    "streams": "spatial: early of streams; semantic: midventral, midlateral, midparietal, ventral, lateral and parietal of streams",
    "all": "both branches: nsdgeneral, and floc ROIs outside it without V1v to hV4",
}
SPATIAL_FILE = "prf-visualrois"
_WHOLE, _STREAMS = "nsdgeneral", "streams"
_LATER = ("midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")
_Pair = tuple[BoolArray, BoolArray]


class Choice(BaseModel):
    """Which voxels a decoder was asked to read, as its manifest stores it.

    Parameters
    ----------
    name : {'default', 'takagi', 'streams', 'all'}
        ``default``: V1 to hV4 against the rest (our reading of HAVIR, whose lists are not known). ``takagi``: the early against the ventral
        stream (Takagi and Nishimoto 2023). ``streams``: the early against the six other streams. ``all``: every voxel of ``default`` to both
        branches, the control without which "spatial lesions move the layout, semantic ones the content" is true by construction.
    rois : tuple of str
        When not empty, each branch reads only those of its voxels that lie in these ROIs; spelled as in a mask (``V1``, ``lh.FFA-1``,
        ``floc-faces``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: SplitName = "default"
    rois: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Split:
    """A choice made on a subject's atlas.

    Parameters
    ----------
    choice : Choice
    words : str
        What the two masks hold.
    spatial, semantic : bool (n_voxels,)
        Voxels of the Structural Generator and of the Semantic Extractor; they overlap in ``all``.
    """

    choice: Choice
    words: str
    spatial: BoolArray
    semantic: BoolArray


def parse(name: str | None, rois: str | None) -> Choice:
    """Return the choice spelled on a command line: a split's name and ROI names with commas between them.

    Raises
    ------
    RequestError
        No split has this name, or the list of ROIs names none.
    """
    known = {split: split for split in get_args(SplitName)}
    if name is not None and name not in known:
        msg = f"no split is called {name!r}; {nearest(name, known, len(known))}"
        raise RequestError(msg)
    named = tuple(dict.fromkeys(part.strip() for part in (rois or "").split(",") if part.strip()))
    if rois is not None and not named:
        msg = f"--rois takes ROI names with commas between them, such as V1,V2,FFA-1; got {rois!r}"
        raise RequestError(msg)
    return Choice(name=known[name] if name else "default", rois=named)


def choose(atlas: Atlas, choice: Choice | None = None) -> Split:
    """Make a choice on a subject's atlas.

    Parameters
    ----------
    atlas : Atlas
    choice : Choice, optional
        The default one when left out.

    Returns
    -------
    Split

    Raises
    ------
    WeightsInvalid
        The atlas leaves a branch without voxels.
    MaskError
        An ROI that the subject does not have.
    RequestError
        The ROIs leave a branch without voxels, or neither branch reads one of them.
    """
    choice = choice or Choice()
    pair = _SPLITS[choice.name](atlas)
    for name, voxels in zip(("spatial", "semantic"), pair, strict=True):
        if not voxels.any():
            msg = f"the split needs {name} voxels ({WORDS[choice.name]}) but the atlas has none; its files are {', '.join(_files(atlas)) or 'none'}"
            raise WeightsInvalid(msg)
    if not choice.rois:
        return Split(choice, WORDS[choice.name], *pair)
    return Split(choice, f"{WORDS[choice.name]}; of these only {', '.join(choice.rois)}", *_within(atlas, choice, pair))


def _within(atlas: Atlas, choice: Choice, pair: _Pair) -> _Pair:
    chosen = {name: atlas.voxels(name) for name in choice.rois}
    for name, voxels in chosen.items():
        if not (voxels & (pair[0] | pair[1])).any():
            msg = f"neither branch of the split {choice.name!r} reads a voxel of {name}; leave it out, or choose another split ({WORDS[choice.name]})"
            raise RequestError(msg)
    union = np.logical_or.reduce(list(chosen.values()))
    for branch, voxels in zip(("Structural Generator", "Semantic Extractor"), pair, strict=True):
        if not (voxels & union).any():
            msg = (
                f"the ROIs {', '.join(choice.rois)} leave the {branch} without voxels under the split {choice.name!r} ({WORDS[choice.name]}); "
                "name one that it reads, or let both branches read all of them with the split 'all'"
            )
            raise RequestError(msg)
    return pair[0] & union, pair[1] & union


def default_split(atlas: Atlas) -> tuple[BoolArray, BoolArray]:
    """Return the spatial and the semantic voxels of the default split.

    HAVIR's own ROI lists could not be read (its abstract says only that the visual cortex is split into spatial-processing and
    semantic-processing voxels). Ours: spatial = nsdgeneral ∩ {V1, V2, V3, hV4}; semantic = nsdgeneral without them, plus what floc ROIs
    add outside nsdgeneral, because floc ROIs were drawn generously and overlap nsdgeneral only in part (in the teaching world too).

    Returns
    -------
    spatial, semantic : bool (n_voxels,)
        Disjoint.

    Raises
    ------
    WeightsInvalid
        The atlas leaves one of the two groups empty.
    """
    split = choose(atlas)
    return split.spatial, split.semantic


def _by_areas(atlas: Atlas) -> _Pair:
    files = _files(atlas)
    nobody = np.zeros(len(atlas.right), np.bool_)
    visual = atlas.voxels(SPATIAL_FILE) if SPATIAL_FILE in files else nobody
    whole = atlas.voxels(_WHOLE) if _WHOLE in files else ~nobody
    floc = np.logical_or.reduce([nobody, *(atlas.voxels(f) for f in files if f.startswith("floc-"))])
    return whole & visual, (whole | floc) & ~visual


def _everything(atlas: Atlas) -> _Pair:
    spatial, semantic = _by_areas(atlas)
    return spatial | semantic, spatial | semantic


def _takagi(atlas: Atlas) -> _Pair:
    return _stream(atlas, "early"), _stream(atlas, "ventral")


def _streams(atlas: Atlas) -> _Pair:
    return _stream(atlas, "early"), _stream(atlas, *_LATER)


def _stream(atlas: Atlas, *names: str) -> BoolArray:
    """Voxels of some streams, by file: other atlases may call ROIs of theirs the same."""
    return np.logical_or.reduce([np.zeros(len(atlas.right), np.bool_), *(r.voxels for r in atlas.rois if r.file == _STREAMS and r.name in names)])


def _files(atlas: Atlas) -> tuple[str, ...]:
    return tuple(dict.fromkeys(roi.file for roi in atlas.rois))


_SPLITS: dict[SplitName, Callable[[Atlas], _Pair]] = {"default": _by_areas, "takagi": _takagi, "streams": _streams, "all": _everything}
