"""Train a subject's decoder: resumable, reproducible, judged on training images it has not seen."""

from __future__ import annotations

from pathlib import Path

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode.cohort import fit_cohort
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.enrol import Member
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.options import Options
from havir_explorer.decode.run import Progress
from havir_explorer.decode.targets import TargetSource


def fit(
    dataset: Dataset,
    subject: str,
    targets: TargetSource,
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = True,
    options: Options | None = None,
    device: str = "cpu",
    edges: PixelEdges | None = None,
) -> Havir:
    """Train both branches of a subject, save them and read them back; arguments and errors as :func:`~havir_explorer.decode.cohort.fit_cohort`."""
    member = Member(dataset, subject, folder)
    fit_cohort((member,), targets, folder, steps=steps, seed=seed, progress=progress, resume=resume, options=options, device=device, edges=edges)
    return Havir.load(folder, device=device)
