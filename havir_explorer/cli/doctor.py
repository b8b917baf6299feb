"""``havir doctor``: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from havir_explorer import __version__, paths
from havir_explorer.cli.show import table
from havir_explorer.errors import HavirError

State = Literal["fine", "note", "broken"]
_MARKS = {"fine": "✓", "note": "–", "broken": "✗"}
_DEMO_BYTES = 300 * 2**20
_INSTALL = "in the repository's folder: pip install --constraint constraints.txt --editable ."


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    name : str
    state : {'fine', 'note', 'broken'}
        A note does not stop anything; something broken does.
    found : str
    advice : str
        What to do; empty when there is nothing to do.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine() -> tuple[Check, ...]:
    """Look at everything the package needs; never raises."""
    looks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("device", _device),
        ("cache", _cache),
        ("generator", _generator),
        ("decoders", _decoders),
        ("data", _data),
        ("notebook", _notebook),
        ("networks", _networks),
        ("workers", _workers),
    )
    return tuple(_safely(name, look) for name, look in looks)


def usable(checks: Sequence[Check]) -> bool:
    """True when nothing is broken."""
    return all(check.state != "broken" for check in checks)


def show(checks: Sequence[Check]) -> None:
    """Print the checks, and advice under what needs it."""
    rows = [(f"{_MARKS[c.state]} {c.name}", c.found + (f"\n→ {c.advice}" if c.advice else "")) for c in checks]
    table("", ("check", "found"), rows, numbers=False)


def _safely(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except HavirError as fault:  # its sentence ends with what to do
        return Check(name, "broken", str(fault))
    except Exception as fault:  # noqa: BLE001 - the doctor must finish its round whatever is wrong with the patient
        return Check(name, "broken", f"{type(fault).__name__}: {fault}", f"install havir_explorer again; {_INSTALL}")


def _python() -> Check:
    found = f"Python {platform.python_version()}, havir_explorer {__version__}, {platform.system()} {platform.machine()}"
    old = sys.version_info < (3, 11)
    return Check("python", "broken" if old else "fine", found, "install Python 3.11 or newer" if old else "")


def _packages() -> Check:
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("havir_explorer") or []]
    bad, shown = [], []
    for need in (need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})):
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            bad.append(f"{need.name} is not installed")
            continue
        if need.name in {"torch", "diffusers", "transformers", "nilearn", "jupyterlab", "ipywidgets", "plotly"}:
            shown.append(f"{need.name} {version}")
        if not need.specifier.contains(version, prereleases=True):
            bad.append(f"{need.name} {version} is outside {need.specifier}")
    if bad:
        return Check("packages", "broken", "; ".join(bad), _INSTALL)
    return Check("packages", "fine", ", ".join(shown))


def _device() -> Check:
    import torch

    from havir_explorer.diffuse import device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"CPU, {cores} cores, torch uses {torch.get_num_threads()}"
    chosen = device.device()
    told = f", as {device.DEVICE} says" if os.environ.get(device.DEVICE) else ""
    runs = f"generators run on {chosen}{told}, in {str(device.dtype()).removeprefix('torch.')}"
    cards = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "; no CUDA device, which the demo does not need"
    return Check("device", "fine", f"{found}{cards}; {runs}")


def _cache() -> Check:
    from havir_explorer.data.nsd import MARKER

    folder = paths.cache_folder()
    known = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if not os.access(known, os.W_OK):
        return Check("cache", "broken", f"{known} cannot be written", "set HAVIR_CACHE to a folder of yours")
    free = shutil.disk_usage(known).free
    if free < _DEMO_BYTES:
        advice = f"free {_DEMO_BYTES // 2**20} MiB or set HAVIR_CACHE to a folder on another disk"
        built = (_world() / MARKER).is_file()  # then there is nothing large left to write
        return Check("cache", "note" if built else "broken", f"{folder}: {free / 2**20:.0f} MiB free", advice)
    return Check("cache", "fine", f"{folder}: {free / 2**30:.1f} GiB free")


def _generator() -> Check:
    from havir_explorer.diffuse import weights

    model = weights.load("demo")
    return Check("generator", "fine", f"the demo's Versatile Diffusion loads: {model.side} px pictures, latents {model.latent_shape}")


def _decoders() -> Check:
    from havir_explorer.decode import decoders

    home = paths.shipped_weights()
    folders = [(kind, folder) for kind in ("havir", "linear") for folder in sorted((home / kind).glob("subj*"))]
    if not folders:
        return Check("decoders", "broken", f"no trained decoder under {home}", "train one: havir train --dataset demo --subject subj01")
    loaded = [(kind, decoders.load(folder).manifest) for kind, folder in folders]
    said = (f"{'HAVIR' if kind == 'havir' else kind} of {m.subject}: {m.n_spatial:,} spatial and {m.n_semantic:,} semantic voxels" for kind, m in loaded)
    return Check("decoders", "fine", "\n".join(said))


def _data() -> Check:
    from havir_explorer import data

    if not _world().is_dir():
        return Check("data", "note", "the teaching world is not built yet", "nothing: it is built when first opened; to do it now: havir demo --build-only")
    world = data.open_dataset("demo")
    counts = ", ".join(f"{subject} {len(world.trials(subject)):,} trials" for subject in world.subjects())
    return Check("data", "fine", f"{world.name} at {world.root}: {counts}")


def _world() -> Path:
    from havir_explorer import data

    return data.demo_folder()


def _notebook() -> Check:
    kernel, lab = metadata.version("ipykernel"), metadata.version("jupyterlab")
    if kernel == "7.0.0":
        return Check("notebook", "broken", "ipykernel 7.0.0 loses what threads display", "pip install --upgrade ipykernel")
    return Check("notebook", "fine", f"JupyterLab {lab}, ipykernel {kernel}")


def _networks() -> Check:
    from havir_explorer.measure import networks

    known = networks.NETWORKS.values()
    here = [network.name for network in known if networks.find(network)]
    if len(here) == len(known):
        return Check("networks", "fine", f"all {len(here)} feature networks of the literature's scores")
    found = f"{len(here)} of the {len(known)} feature networks of the literature's scores; the teaching world's scores need none"
    return Check("networks", "note", found, "to score as papers do, see: havir networks list")


def _workers() -> Check:
    if find_spec("distributed") is None:
        return Check("workers", "note", "no Dask: sweeps and evaluations run in one process", "for more: pip install 'havir_explorer[cluster]'")
    slurm = "SLURM jobs can be submitted from here" if shutil.which("sbatch") else "no SLURM on this machine"
    return Check("workers", "fine", f"Dask {metadata.version('distributed')}; {slurm}")
