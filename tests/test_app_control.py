"""What the app says of a decoder both of whose branches read the same voxels, and of one that tells them apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_world import VOXELS, SmallWorld

from havir_explorer.app.branch_panel import BranchPanel
from havir_explorer.app.mask_panel import MaskPanel, rows, shared
from havir_explorer.app.world import Fed
from havir_explorer.attribute import COLUMNS
from havir_explorer.data.dataset import Atlas, Roi
from havir_explorer.decode.split import Choice, choose
from havir_explorer.records import Mask


@pytest.fixture
def atlas() -> Atlas:
    """The small world's, with two streams: V1 and hV4, and FFA-1."""
    small = SmallWorld().atlas("subj01")
    streams = (Roi("early", "streams", np.arange(VOXELS) < 40), Roi("ventral", "streams", (np.arange(VOXELS) >= 80) & (np.arange(VOXELS) < 90)))
    return Atlas((*small.rois, *streams), small.right)


def panel(atlas: Atlas, name: str, *rois: str) -> MaskPanel:
    split = choose(atlas, Choice(name=name, rois=rois))
    made = MaskPanel(lambda mask: None)
    made.populate(atlas, (split.spatial, split.semantic))
    return made


def headings(made: MaskPanel) -> list[str]:
    return [line.value.split("<small>")[1] for line in made._list.children if "<small>" in getattr(line, "value", "")]


def test_the_groups_name_the_branch_that_reads_them(atlas: Atlas) -> None:
    assert headings(panel(atlas, "default")) == ["→ Structural Generator</small>", "→ Semantic Extractor</small>"]
    assert headings(panel(atlas, "all")) == ["→ both branches</small>"] * 2


def test_a_decoder_loaded_later_changes_what_is_said(atlas: Atlas) -> None:
    made, control = panel(atlas, "default"), choose(atlas, Choice(name="all"))
    made.show(Mask(mute=("V1",)))
    assert "Structural Generator only" in made.reach()
    made.read_by((control.spatial, control.semantic))
    assert headings(made) == ["→ both branches</small>"] * 2
    assert "reaches both branches" in made.reach()


def test_streams_keep_their_group_where_both_branches_read_everything(atlas: Atlas) -> None:
    for name in ("default", "all", "takagi"):
        split = choose(atlas, Choice(name=name))
        spatial, semantic = rows(atlas, (split.spatial, split.semantic))
        assert [row.name for row in spatial] == ["V1", "hV4", "early"]
        assert [row.name for row in semantic] == ["floc-faces", "FFA-1", "ventral"]


def test_an_roi_outside_the_chosen_ones_cannot_change_the_picture(atlas: Atlas) -> None:
    made = panel(atlas, "default", "V1", "FFA-1")
    made.show(Mask(mute=("hV4",)))
    assert "no voxel that either branch reads" in made.reach()


def test_only_overlapping_masks_are_shared(atlas: Atlas) -> None:
    for name, expected in (("default", False), ("takagi", False), ("all", True)):
        split = choose(atlas, Choice(name=name))
        assert shared((split.spatial, split.semantic)) is expected


def test_the_maps_title_says_what_the_branch_reads() -> None:
    class Cortex:
        titles: list[str] = []  # noqa: RUF012 - what the panel was asked to draw

        def show(self, _vertices: object, title: str, *_: object, **_words: object) -> None:
            self.titles.append(title)

    made, table = BranchPanel(lambda branch: None), pd.DataFrame(columns=list(COLUMNS))
    made._cortex = Cortex()
    made.paint("structural", Fed(np.zeros(3, np.float32), table))
    made.paint("structural", Fed(np.zeros(3, np.float32), table), shared=True)
    assert Cortex.titles == ["Structural Generator reads spatial-processing voxels", "Structural Generator reads spatial- and semantic-processing voxels"]
