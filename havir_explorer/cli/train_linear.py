"""``havir train --method linear``: the ridge baseline, with what it will cost said first."""

from __future__ import annotations

from pathlib import Path

from havir_explorer.cli.show import console, progress_bar
from havir_explorer.data.dataset import Dataset
from havir_explorer.decode.linear_cost import cost
from havir_explorer.decode.linear_fit import LinearOptions, fit
from havir_explorer.decode.manifest import Manifest
from havir_explorer.decode.samples import collect
from havir_explorer.decode.split import choose
from havir_explorer.decode.targets import TargetSource


def train(
    tree: Dataset, subject: str, targets: TargetSource, folder: Path, options: LinearOptions, *, seed: int, resume: bool, device: str = "cpu"
) -> Manifest:
    """Fit a subject's linear decoder into ``folder``; arguments and errors as :func:`~havir_explorer.decode.linear_fit.fit`."""
    split, images = choose(tree.atlas(subject), options.choice), len(collect(tree, subject, targets.nsd_ids).nsd_ids)
    told = cost(images, int(split.spatial.sum()), int(split.semantic.sum()), targets.shapes, components=options.components, folds=options.folds)
    console(to_stderr=True).print(told.sentence(device))
    with progress_bar("fitting") as show:
        return fit(tree, subject, targets, folder, seed=seed, progress=show, resume=resume, options=options, device=device).manifest
