"""Which voxels the decoder may read: keep, mute or solo, ROI by ROI, and which branch that can reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import ipywidgets as widgets
import numpy as np

from havir_explorer import masks
from havir_explorer.app.style import words
from havir_explorer.data.dataset import Atlas
from havir_explorer.errors import MaskError
from havir_explorer.records import BoolArray, Mask

SPATIAL_FILE = "prf-visualrois"
BRANCH_NAMES = {"structural": "Structural Generator", "semantic": "Semantic Extractor"}
_FILES = {
    "floc-faces": "all faces",
    "floc-bodies": "all bodies",
    "floc-places": "all places",
    "floc-words": "all words",
    "streams": "",
}
_SIDES = (("both", ""), ("left", "lh."), ("right", "rh."))


Split = tuple[BoolArray, BoolArray]


@dataclass(frozen=True)
class Row:
    """One line of the panel.

    Parameters
    ----------
    name : str
        As a mask spells it, without hemisphere.
    label : str
        As the panel shows it.
    kind : {'whole', 'part', 'plain'}
        A whole atlas file, one of its ROIs, or an ROI that stands for itself.
    """

    name: str
    label: str
    kind: str = "plain"


def rows(atlas: Atlas, split: Split) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return the lines of the spatial and of the semantic group for a subject's ROIs.

    A stream goes where most of its voxels are read, or, where both branches read the same voxels, where most of them lie.
    """
    files: dict[str, list[str]] = {}
    for roi in atlas.rois:
        files.setdefault(roi.file, []).append(roi.name)
    early = [n for n in files.get(SPATIAL_FILE, []) if n[-1:] != "d" or f"{n[:-1]}v" not in files[SPATIAL_FILE]]
    unions = [n[:-1] if n[-1:] == "v" and f"{n[:-1]}d" in files[SPATIAL_FILE] else n for n in early]
    groups: tuple[list[Row], list[Row]] = ([Row(n, n) for n in unions], [])
    spatial = atlas.voxels(SPATIAL_FILE) if early and shared(split) else split[0]
    for file, whole in _FILES.items():
        names = files.get(file, [])
        if names and whole:
            groups[1].extend([Row(file, whole, "whole"), *(Row(n, n, "part") for n in names)])
        for name in () if whole else names:
            groups[0 if spatial[atlas.voxels(name)].mean() > 0.5 else 1].append(Row(name, f"{name} stream"))
    return tuple(groups[0]), tuple(groups[1])


def shared(split: Split) -> bool:
    """Return True for a decoder both of whose branches read some of the same voxels: the control that tells no branch's voxels apart."""
    return bool((split[0] & split[1]).any())


class MaskPanel:
    """ROI list with keep, mute and solo.

    Parameters
    ----------
    on_mask : callable
        Called with the new :class:`~havir_explorer.records.Mask` when the user changed it.

    """

    def __init__(self, on_mask: Callable[[Mask], None]) -> None:
        self._on_mask = on_mask
        self._mask = Mask()
        self._atlas: Atlas | None = None
        self._split: Split | None = None
        self._quiet = False
        self.toggles: dict[str, widgets.ToggleButtons] = {}
        style = {"description_width": "84px"}
        wide = widgets.Layout(width="100%")
        self.side = widgets.Dropdown(description="Hemisphere", options=_SIDES, value="", layout=wide, style=style)
        self.fill = widgets.Dropdown(
            description="Replaced by", options=[("training mean", "mean"), ("another trial", "trial"), ("noise", "noise")], layout=wide, style=style
        )
        self.fill_trial = widgets.BoundedIntText(description="From trial", min=0, max=10**6, layout=widgets.Layout(width="100%", display="none"), style=style)
        self.clear = widgets.Button(description="Clear mask", layout=widgets.Layout(width="104px"))
        self._list, self._about = widgets.VBox(), widgets.HTML()
        self._headings = (widgets.HTML(), widgets.HTML())
        self._list.add_class("havir-rois")
        self.side.observe(lambda _: self._paint(), names="value")
        self.fill.observe(self._chose_fill, names="value")
        self.fill_trial.observe(self._chose_fill, names="value")
        self.clear.on_click(lambda _: self._on_mask(Mask()))
        head = widgets.HBox([widgets.HTML("<h3>ROI mask</h3>"), self.clear], layout=widgets.Layout(justify_content="space-between"))
        self.widget = widgets.VBox([head, self.side, self._list, self.fill, self.fill_trial, self._about])
        self.widget.add_class("havir-section")

    def populate(self, atlas: Atlas, split: Split) -> None:
        """List a subject's ROIs; ``split`` as :meth:`read_by` takes it."""
        self._atlas = atlas
        self.toggles = {}
        lines: list[widgets.Widget] = []
        for heading, group in zip(self._headings, rows(atlas, split), strict=True):
            heading.add_class("havir-group")
            lines += [heading, *(self._line(row, atlas) for row in group)]
        self._list.children = lines
        self.read_by(split)
        self._paint()

    def read_by(self, split: Split) -> None:
        """Say which voxels, bool (n_voxels,) each, the Structural Generator and the Semantic Extractor read; :meth:`reach` goes by them."""
        self._split = split
        titles = zip(("Spatial-processing", "Semantic-processing"), BRANCH_NAMES.values(), strict=True)
        for heading, (title, branch) in zip(self._headings, titles, strict=True):
            heading.value = f"<b>{title}</b> <small>→ {'both branches' if shared(split) else branch}</small>"

    def show(self, mask: Mask) -> None:
        """Show a mask, without calling back."""
        self._mask = mask
        self._paint()

    def _line(self, row: Row, atlas: Atlas) -> widgets.ToggleButtons:
        count = int(atlas.voxels(row.name).sum())
        toggle = widgets.ToggleButtons(
            options=["keep", "mute", "solo"],
            description=f"{words(row.label)} ({count:,})",
            description_allow_html=True,
            tooltips=[f"{row.label}: pass unchanged", f"{row.label}: replace its {count} voxels", f"keep only {row.label} (and other solo ROIs)"],
            style={"button_width": "42px", "description_width": "auto"},
        )
        toggle.add_class("havir-roi")
        toggle.add_class(row.kind)
        toggle.observe(lambda change: self._chose(row.name, change["new"]), names="value")
        self.toggles[row.name] = toggle
        return toggle

    def _chose(self, name: str, verb: str) -> None:
        if self._quiet:
            return
        full = f"{self.side.value}{name}"
        mute = tuple(n for n in self._mask.mute if n != full) + ((full,) if verb == "mute" else ())
        keep = tuple(n for n in self._mask.keep if n != full) + ((full,) if verb == "solo" else ())
        self._ask(replace(self._mask, mute=mute, keep=keep))

    def _chose_fill(self, _: object) -> None:
        if not self._quiet:
            self._ask(replace(self._mask, fill=self.fill.value, fill_trial=int(self.fill_trial.value)))

    def _ask(self, mask: Mask) -> None:
        try:
            self._on_mask(mask)
        finally:
            self._paint()  # a refused mask leaves the toggles as they were

    def _paint(self) -> None:
        self._quiet = True
        try:
            for name, toggle in self.toggles.items():
                full = f"{self.side.value}{name}"
                toggle.value = "mute" if full in self._mask.mute else "solo" if full in self._mask.keep else "keep"
            self.fill.value, self.fill_trial.value = self._mask.fill, self._mask.fill_trial
            self.fill_trial.layout.display = "" if self._mask.fill == "trial" else "none"
            self.clear.disabled = self._mask.is_empty
            self._about.value = f"<small>{words(self.summary())}</small>"
        finally:
            self._quiet = False

    def summary(self) -> str:
        """Say what the mask does, in words."""
        mask, atlas = self._mask, self._atlas
        if atlas is None or mask.is_empty:
            return "No mask: every voxel passes unchanged."
        try:
            gain, replaced = masks.gains(mask, atlas)
        except MaskError as error:
            return str(error)
        parts = [f"mute {', '.join(mask.mute)}"] * bool(mask.mute) + [f"keep only {', '.join(mask.keep)}"] * bool(mask.keep)
        parts += [", ".join(f"{n} × {g:g}" for n, g in mask.gains)] * bool(mask.gains)
        scaled = int(np.count_nonzero((gain != 1) & ~replaced))
        counts = f"{int(replaced.sum()):,} of {len(replaced):,} voxels replaced" + (f", {scaled:,} scaled" if scaled else "")
        return f"{'; '.join(parts)}: {counts}."

    def reach(self) -> str:
        """Say which branch the mask can reach, in words."""
        if self._atlas is None or self._split is None or self._mask.is_empty:
            return "No mask is set, so both pictures are the same request."
        try:
            branches = masks.reach(self._mask, self._atlas, *self._split)
        except MaskError as error:
            return str(error)
        if not branches:
            return "This mask changes no voxel that either branch reads: the picture cannot change."
        if len(branches) == 2:
            return "This mask reaches both branches: decoded latents and CLIP embeddings can change."
        if branches == ("structural",):
            return "This mask reaches the Structural Generator only: layout can change, the CLIP embeddings cannot."
        return "This mask reaches the Semantic Extractor only: content can change, the decoded latents cannot."
