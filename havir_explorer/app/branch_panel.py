"""Which cortex feeds a branch: the map, its words and its table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import ipywidgets as widgets
import pandas as pd

from havir_explorer.app.mask_panel import BRANCH_NAMES
from havir_explorer.app.style import words
from havir_explorer.app.world import Fed
from havir_explorer.draw.cortex import OUTLINED
from havir_explorer.records import Branch

if TYPE_CHECKING:
    from havir_explorer.app.cortex_panel import CortexPanel
    from havir_explorer.data.dataset import Atlas, SurfaceMap

TOP = 8
FEWEST = 5
"""Voxels that a branch must read of an ROI for its mean to be worth a line."""
_READS = {"structural": "spatial-processing", "semantic": "semantic-processing"}
_SHARED = "spatial- and semantic-processing"


class BranchPanel:
    """Branch switch, cortical map, a line on what a mask can reach, and the map's text twin.

    Parameters
    ----------
    on_branch : callable
        Called with the branch that the user chose.
    """

    def __init__(self, on_branch: Callable[[Branch], None]) -> None:
        self._on_branch = on_branch
        self._quiet = False
        self._cortex: CortexPanel | None = None
        self._subject = ""
        self.switch = widgets.ToggleButtons(options=[(name, branch) for branch, name in BRANCH_NAMES.items()], description="Branch")
        self.switch.add_class("havir-switch")
        self.switch.observe(self._chose, names="value")
        self._reach, self._table = widgets.HTML(), widgets.HTML()
        self._plot = widgets.VBox([widgets.HTML('<p class="soft">The map appears when the decoder is loaded.</p>')])
        self._plot.add_class("havir-plot")
        head = widgets.HBox([widgets.HTML("<h3>Which cortex feeds the branch</h3>"), self.switch])
        head.add_class("havir-cortex-head")
        self.widget = widgets.VBox([head, self._reach, self._plot, self._table])
        self.widget.add_class("havir-cortex")

    def show(self, branch: Branch) -> None:
        """Show a choice, without calling back."""
        self._quiet = True
        try:
            self.switch.value = branch
        finally:
            self._quiet = False

    def say(self, reach: str) -> None:
        """Say what the mask can reach."""
        self._reach.value = f'<span class="soft">{words(reach)}</span>'

    def set_rois(self, subject: str, atlas: Atlas, surface: SurfaceMap) -> None:
        """Outline a subject's ROIs unless they are; the first call makes the figure, of which there is only one."""
        if subject == self._subject:
            return
        from havir_explorer.app.cortex_panel import CortexPanel

        cortex = self._cortex or CortexPanel(width=500)
        if self._cortex is None:
            cortex.set_view("posterior")  # where visual cortex is
        cortex.set_rois(atlas, surface)
        self._cortex, self._subject = cortex, subject
        self._plot.children = [cortex.widget]

    def paint(self, branch: Branch, fed: Fed, *, shared: bool = False) -> None:
        """Paint a branch's map and write its table; ``shared`` where both branches read the same voxels."""
        if self._cortex is not None:
            title = f"{BRANCH_NAMES[branch]} reads {_SHARED if shared else _READS[branch]} voxels"
            self._cortex.show(fed.vertices, title, "weight percentile", 0.0, 1.0, without="not read")
        self._table.value = _table(fed.table, branch)

    def _chose(self, change: dict[str, Branch]) -> None:
        if not self._quiet:
            self._on_branch(change["new"])


def _table(table: pd.DataFrame, branch: Branch) -> str:
    both = table[(table["hemisphere"] == "both") & (table["n_in_branch"] >= FEWEST) & table["file"].isin(OUTLINED)]
    both = both.sort_values("mean", ascending=False).head(TOP)
    lines = [
        f"<tr><td>{words(row.roi)} <small>{words(row.file)}</small></td><td>{row.mean:.2f}{_spread(row.sem)}</td>"
        f"<td>{row.n_in_branch:,} of {row.n_voxels:,}</td></tr>"
        for row in both.itertuples()
    ]
    return (
        f'<table class="havir-table"><caption class="soft" style="text-align:left;padding:4px 0">The {len(lines)} ROIs that feed the '
        f"{BRANCH_NAMES[branch]} most: mean percentile of the voxels’ weights ± standard error. Weight is not information: correlated voxels "
        'share it.</caption><thead><tr><th scope="col">ROI</th><th scope="col">Weight percentile</th><th scope="col">Voxels read</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _spread(sem: float) -> str:
    return f" ± {sem:.2f}" if math.isfinite(sem) else ""
