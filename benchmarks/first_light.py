"""How long the app makes you wait: ``python benchmarks/first_light.py [--json]``, measured on the teaching world.

Every figure is taken in this process, which holds what the app's kernel holds (the app itself, its models and data), except the import time,
which needs new processes. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from havir_explorer.cli.show import quiet

RUNS = 20


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Parameters
    ----------
    name : str
    value, target : float
        In ``unit``; at most ``target`` is wanted.
    unit : str
    how : str
        What was measured.
    spread : (float, float)
        Smallest and largest of the runs.
    """

    name: str
    value: float
    target: float
    unit: str
    how: str
    spread: tuple[float, float]

    @property
    def met(self) -> bool:
        """True when the value is within its target."""
        return self.value <= self.target


def median(name: str, seconds: list[float], target: float, how: str) -> Figure:
    """The median of several runs, in seconds."""
    return Figure(name, statistics.median(seconds), target, "s", f"median of {len(seconds)}: {how}", (min(seconds), max(seconds)))


def imports(runs: int = 5) -> Figure:
    """``import havir_explorer`` in new processes."""
    code = "import time; start = time.perf_counter(); import havir_explorer; print(time.perf_counter() - start)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) for _ in range(runs)]
    return median("import", seconds, 0.5, "import havir_explorer in a new process")


def pictures(runs: int = RUNS) -> tuple[Figure, Figure]:
    """Warm requests at the default settings, each of another test image, and the first preview of each."""
    from havir_explorer.data import open_dataset
    from havir_explorer.pipeline import run
    from havir_explorer.records import Request, Step

    table = open_dataset("demo").trials("subj01")
    shown = table[table["shared"]].drop_duplicates("nsd_id").index[: runs + 1]
    totals: list[float] = []
    previews: list[float] = []
    for trial in shown:
        began = time.perf_counter()
        seen: list[float] = []

        def on_step(step: Step, began: float = began, seen: list[float] = seen) -> None:
            if step.preview is not None:
                seen.append(time.perf_counter() - began)

        run(Request(trial=int(trial)), on_step=on_step)
        totals.append(time.perf_counter() - began)
        previews.append(seen[0])
    return (  # the first run loads the models and warms up
        median("request → picture", totals[1:], 1.5, "one request at the default settings, scores included"),
        median("request → first preview", previews[1:], 0.3, "the same requests, until the first preview"),
    )


def repaint(runs: int = RUNS) -> Figure:
    """The other branch's contributions onto the app's cortex."""
    from havir_explorer import attribute, pipeline
    from havir_explorer.app.cortex_panel import CortexPanel
    from havir_explorer.draw.cortex import cortical_map
    from havir_explorer.draw.mesh import MESH
    from havir_explorer.records import Branch, Request

    dataset, decoder, _ = pipeline.models(Request())
    surface = dataset.surface("subj01", MESH)
    panel = CortexPanel()
    panel.set_rois(dataset.atlas("subj01"), surface)
    branches: tuple[Branch, Branch] = ("structural", "semantic")
    values = {b: attribute.contribution(decoder, b).values for b in branches}
    seconds = []
    for index in range(runs + 2):
        branch = branches[index % 2]
        began = time.perf_counter()
        panel.show(cortical_map(values[branch], surface), branch, "percentile", 0, 1)
        seconds.append(time.perf_counter() - began)
    return median("contribution repaint", seconds[2:], 0.020, "voxel values to vertex colours sent, in the kernel")


def memory() -> Figure:
    """Peak resident memory of this process, with the app made on top of all the above."""
    from havir_explorer import Explorer

    app = Explorer()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    del app
    return Figure("peak memory", peak, 1.5, "GiB", "peak resident memory of this process: app, models, data", (peak, peak))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the figures of the first light on the teaching world.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs a figure")
    options = parser.parse_args()
    quiet()
    figures = [imports(), *pictures(options.runs), repaint(options.runs), memory()]
    if options.json:
        print(json.dumps({"machine": machine(), "figures": [{**asdict(f), "met": f.met} for f in figures]}, indent=2))
        return
    print(machine())
    print(f"{'figure':<26}{'value':>9}{'target':>9}  {'min – max':<19}{'met':<5}how")
    for f in figures:
        low, high = f.spread
        print(f"{f.name:<26}{f.value:>7.3f} {f.unit:<3}{f.target:>6.3f}  {f'{low:.3f} – {high:.3f}':<19}{'yes' if f.met else 'NO':<5}{f.how}")


def machine() -> str:
    """The machine in a line: a figure without it means nothing."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = np.round(os.getloadavg()[0], 1)
    return f"{platform.system()} {platform.machine()}, {cores} cores, load {load}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
