"""What a mask does to the voxels: a gain each, and which ones are replaced.

A lesion sets an ROI's z-scored responses to their mean and keeps the decoder's weights; keep-only does so everywhere else. Replacing by
another trial's values keeps the distribution the decoder was trained on. A lesion says something only beside size-matched controls.
"""

from __future__ import annotations

import numpy as np

from havir_explorer.data.dataset import Atlas
from havir_explorer.errors import MaskError
from havir_explorer.records import BoolArray, Branch, Fill, FloatArray, Mask


def gains(mask: Mask, atlas: Atlas) -> tuple[FloatArray, BoolArray]:
    """Translate ROI names into voxels.

    Parameters
    ----------
    mask : Mask
    atlas : Atlas

    Returns
    -------
    gain : float32 (n_voxels,)
        Factor on the z-scored response; where ROIs with gains overlap, their product.
    replaced : bool (n_voxels,)
        Voxels whose response gives way to the mask's fill, whatever their gain.

    Raises
    ------
    MaskError
        Unknown ROI, or no voxel passes.
    """
    gain = np.ones(len(atlas.right), np.float32)
    replaced = np.zeros(len(gain), bool)
    if mask.keep:
        replaced = ~np.logical_or.reduce([atlas.voxels(name) for name in mask.keep])
    for name in mask.mute:
        replaced |= atlas.voxels(name)
    for name, factor in mask.gains:
        gain[atlas.voxels(name)] *= factor
    if (replaced | (gain == 0)).all():
        parts = (("keep", mask.keep), ("mute", mask.mute), ("gain", tuple(f"{n}={g:g}" for n, g in mask.gains)))
        asked = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        msg = f"the mask ({asked}) leaves none of the {len(gain)} voxels; mute less or keep more"
        raise MaskError(msg)
    return gain, replaced


def replace(responses: FloatArray, replaced: BoolArray, fill: Fill = "mean", *, other: FloatArray | None = None, seed: int = 0) -> FloatArray:
    """Return a copy of ``responses`` with some voxels replaced.

    Parameters
    ----------
    responses : float32 (n, n_voxels)
        Z-scored.
    replaced : bool (n_voxels,)
    fill : {'mean', 'trial', 'noise'}
        0, the z-scored mean; the same voxels of ``other``; or unit normal noise. The noise of a voxel depends on ``seed`` alone: neither
        on the rest of the mask nor on how many trials share the batch.
    other : float32 (n_voxels,) or (n, n_voxels), optional
        The responses that ``'trial'`` takes.
    seed : int
        Of the noise.

    Raises
    ------
    MaskError
        ``fill`` is ``'trial'`` and ``other`` is absent or of another shape.
    """
    result = np.array(responses, np.float32)
    if fill == "mean":
        result[:, replaced] = 0
    elif fill == "noise":
        result[:, replaced] = np.random.default_rng(seed).standard_normal(len(replaced), np.float32)[replaced]
    else:
        if other is None or np.shape(other) not in (result.shape, (1, result.shape[1]), result.shape[1:]):
            found = "none were given" if other is None else f"got shape {np.shape(other)}"
            msg = f"fill 'trial' needs the other trial's responses for the same {result.shape[1]} voxels; {found}"
            raise MaskError(msg)
        result[:, replaced] = np.broadcast_to(other, result.shape)[:, replaced]
    return result


def apply(responses: FloatArray, mask: Mask, atlas: Atlas, *, other: FloatArray | None = None) -> FloatArray:
    """Return responses as the mask lets them through; the input is left alone.

    Parameters
    ----------
    responses : float32 (n, n_voxels)
        Z-scored.
    mask : Mask
    atlas : Atlas
    other : float32 (n_voxels,) or (n, n_voxels), optional
        Responses of trial ``mask.fill_trial``; needed when ``mask.fill`` is ``'trial'`` and something is replaced.

    Returns
    -------
    float32 (n, n_voxels)

    Raises
    ------
    MaskError
        As :func:`gains` and :func:`replace`; or the atlas is of other voxels.
    """
    if responses.ndim != 2 or responses.shape[1] != len(atlas.right):
        msg = f"responses have shape {responses.shape}, but the atlas names {len(atlas.right)} voxels; both must be of one subject"
        raise MaskError(msg)
    if mask.is_empty:
        return np.array(responses, np.float32)
    gain, replaced = gains(mask, atlas)
    scaled = responses * gain
    if not replaced.any():
        return scaled
    return replace(scaled, replaced, mask.fill, other=other, seed=mask.fill_seed)


def control(region: str | BoolArray, atlas: Atlas, within: BoolArray, seed: int) -> BoolArray:
    """Draw a random voxel set as large as a region: the null against which its lesion is read.

    Parameters
    ----------
    region : str or bool (n_voxels,)
        ROI name or voxels; only those in ``within`` count.
    atlas : Atlas
    within : bool (n_voxels,)
        The branch's voxels, from which the set is drawn.
    seed : int

    Returns
    -------
    bool (n_voxels,)
        As many voxels as ``region & within``, outside the region while there are enough of them; the rest comes from inside.

    Raises
    ------
    MaskError
        Unknown ROI, or the region has no voxel in ``within``.
    """
    inside = (atlas.voxels(region) if isinstance(region, str) else region) & within
    size = int(inside.sum())
    if not size:
        what = repr(region) if isinstance(region, str) else "the region"
        msg = f"{what} has no voxel in the branch, so there is no size to match; choose an ROI that the branch reads"
        raise MaskError(msg)
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(np.flatnonzero(within & ~inside)), random.permutation(np.flatnonzero(inside))])
    drawn = np.zeros(len(within), bool)
    drawn[order[:size]] = True
    return drawn


def reach(mask: Mask, atlas: Atlas, spatial: BoolArray, semantic: BoolArray) -> tuple[Branch, ...]:
    """Return the branches whose voxels a mask changes; in HAVIR the other one's output cannot move.

    Parameters
    ----------
    mask : Mask
    atlas : Atlas
    spatial, semantic : bool (n_voxels,)
        Voxels of the Structural Generator and of the Semantic Extractor.

    Raises
    ------
    MaskError
        As :func:`gains`.
    """
    if mask.is_empty:
        return ()
    gain, replaced = gains(mask, atlas)
    changed = replaced | (gain != 1)
    branches: tuple[tuple[Branch, BoolArray], ...] = (("structural", spatial), ("semantic", semantic))
    return tuple(branch for branch, voxels in branches if (changed & voxels).any())
