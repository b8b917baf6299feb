"""What training a branch takes, told before it starts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from havir_explorer.decode import trunk
from havir_explorer.decode.manifest import Manifest
from havir_explorer.decode.objectives import OBJECTIVES
from havir_explorer.decode.options import Options
from havir_explorer.errors import OutputError
from havir_explorer.records import Branch

_FLOAT = 4
_TRAINING, _SAVED = 5, 4
"""Copies of the parameters: weights, gradients, AdamW's two moments and what a step of it works in; in a checkpoint weights, best weights and both moments."""
_TRUNK, _MAPS, _TOKENS = 6, 14, 6
"""What the gradient needs for each value of a trunk's layer, of the upsampler's maps and of the predicted tokens, in float32 values."""


@dataclass(frozen=True)
class Cost:
    """What training one branch takes, on one subject or on several with one trunk.

    Parameters
    ----------
    branch : {'structural', 'semantic'}
    parameters : int
    training_bytes : int
        On the device: weights, gradients, the optimiser's moments and work, and what a batch's gradient needs; the trunk once.
    memory_bytes : int
        Of the machine's own memory besides: responses and the best weights so far.
    checkpoint_bytes, weights_bytes : int
        On disk while it trains (twice that for a moment, because the new one is written before the old one goes), and afterwards.
    """

    branch: Branch
    parameters: int
    training_bytes: int
    memory_bytes: int
    checkpoint_bytes: int
    weights_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.branch} branch: {self.parameters / 1e6:,.1f} million parameters; about {size(self.training_bytes)} on the device and "
            f"{size(self.memory_bytes)} of memory besides; checkpoints of {size(self.checkpoint_bytes)}, in the end weights of {size(self.weights_bytes)}"
        )


def cost(manifests: Sequence[Manifest], options: Options, branch: Branch, trials: Sequence[int], more: int = 0) -> Cost:
    """Estimate what training a branch takes.

    Parameters
    ----------
    manifests : sequence of Manifest
        Of each subject's decoder.
    options : Options
    branch : {'structural', 'semantic'}
    trials : sequence of int
        How many each subject's responses are to.
    more : int
        Bytes on the device for a loss of its own.
    """
    first = manifests[0]
    with torch.device("meta"):
        sizes = [{name: p.numel() for name, p in OBJECTIVES[branch].module(one).named_parameters()} for one in manifests]
    whole = [sum(of_one.values()) for of_one in sizes]
    parameters = whole[0] + sum(size for of_one in sizes[1:] for name, size in of_one.items() if trunk.is_own(name))
    at_once = options.batch * _FLOAT * (_structural(first) if branch == "structural" else _semantic(first))
    voxels = [one.n_spatial if branch == "structural" else one.n_semantic for one in manifests]
    responses = _FLOAT * sum(count * of_one for count, of_one in zip(trials, voxels, strict=True))
    one = _FLOAT * parameters
    return Cost(branch, parameters, _TRAINING * one + at_once + more, responses + one, _SAVED * one, 2 * sum(whole))


def _structural(manifest: Manifest) -> int:
    """Values that one picture's gradient needs in the Structural Generator."""
    sizes, (_, height, width) = manifest.sizes()[0], manifest.latent_shape
    maps = sum(height * width // 4**back for back in range(sizes.doublings + 1)) * sizes.channels
    return _TRUNK * sizes.width * (sizes.blocks + 1) + _MAPS * maps


def _semantic(manifest: Manifest) -> int:
    """Values that one picture's gradient needs in the Semantic Extractor."""
    sizes, shapes = manifest.sizes()[1], (manifest.image_shape, manifest.text_shape)
    return _TRUNK * sizes.width * (sizes.blocks + 1) + _TOKENS * sum(count * width for count, width in shapes)


def check_disk(folder: Path, costs: list[Cost], there: int = 0) -> None:
    """Make sure that the folder has room for checkpoints and weights; ``there`` are the bytes of checkpoints that it holds and that will be replaced.

    Raises
    ------
    OutputError
        It has not.
    """
    needed = sum(each.checkpoint_bytes + each.weights_bytes for each in costs) + max(each.checkpoint_bytes for each in costs) - there
    home = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(home).free
    if free < needed:
        msg = f"training needs {size(needed)} more in {folder} for checkpoints and weights, but {size(free)} are free there; make room or choose another folder"
        raise OutputError(msg)


def size(count: float) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Return a time in words."""
    return f"{seconds / 3600:.1f} h" if seconds >= 6000 else f"{seconds / 60:.0f} min" if seconds >= 100 else f"{max(seconds, 1):.0f} s"


class Pace:
    """Tells how fast steps are and how long the rest takes: after a process's first steps, and once more when looks and checkpoints are in the mean.

    At the full size these may take as long as the steps: a checkpoint is as large as four copies of the weights, and disks differ.

    Parameters
    ----------
    branch : {'structural', 'semantic'}
    options : Options
        Pictures a step, and steps between checkpoints.
    notice : callable, optional
        Told in a sentence.
    """

    WARM, ENOUGH, SECONDS = 3, 20, 10.0
    """Steps that do not count, steps that tell enough, and a time after which fewer do."""

    def __init__(self, branch: Branch, options: Options, notice: Callable[[str], None] | None) -> None:
        self._branch, self._batch, self._notice = branch, options.batch, notice
        self._steps, self._began, self._told = -self.WARM, 0.0, False
        self._round = max(options.save_every, options.check_every, self.ENOUGH + 1)

    def step(self, left: int) -> None:
        """Count a step; ``left`` are to come."""
        self._steps += 1
        if self._steps == 0:
            self._began = time.perf_counter()
        if self._notice is None or self._steps < 1 or not left:
            return
        taken = time.perf_counter() - self._began
        if self._steps == self._round:
            self._say(taken, left, "counting looks at held-out pictures and checkpoints")
        elif not self._told and (self._steps >= self.ENOUGH or taken >= self.SECONDS):
            self._say(taken, left, "and looks at held-out pictures and checkpoints besides")

    def _say(self, taken: float, left: int, how: str) -> None:
        each = taken / self._steps
        pace = f"{each:.3g} s a step, {self._batch / each:,.0f} pictures a second"
        if self._notice is not None:
            self._notice(f"{self._branch} branch: {pace}; the {left:,} steps left take about {duration(left * each)}, {how}")
        self._told = True
