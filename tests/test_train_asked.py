"""What ``havir train`` understands of splits, ROIs, edges and mixing, and what it refuses before it encodes anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_world import SmallWorld
from tiny_versatile import tiny_model

from havir_explorer import cli_train, encoding
from havir_explorer.cli import command
from havir_explorer.cli_train_asked import Asked, asked, pixel_edges
from havir_explorer.decode.options import Options
from havir_explorer.decode.split import Choice
from havir_explorer.diffuse.model import resized
from havir_explorer.errors import RequestError


def test_nothing_asked_changes_no_option() -> None:
    plain = asked(mixco=False, edges="latents", split_name=None, rois=None)
    assert plain == Asked()
    base = Options(batch=7, mixco=0.2, pixel_edges=3.0, choice=Choice(name="all"))  # as a file may have said
    assert plain.options(base) == base


def test_what_is_asked_becomes_options() -> None:
    options = asked(mixco=True, edges="pixels", split_name="all", rois="V1,FFA-1").options(Options(batch=7))
    assert options.mixco == pytest.approx(1 / 3)
    assert options.edges == 0
    assert options.pixel_edges == pytest.approx(16 * 0.18215)
    assert options.choice == Choice(name="all", rois=("V1", "FFA-1"))
    assert options.batch == 7


def test_edges_elsewhere_are_refused() -> None:
    with pytest.raises(RequestError, match="--edges takes latents or pixels; got 'pixel'; nearest: pixels"):
        asked(mixco=False, edges="pixel", split_name=None, rois=None)


def test_the_command_line_hands_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Asked] = []

    def train(*_: object, asked: Asked, **__: object) -> None:
        heard.append(asked)
        msg = "heard"
        raise RequestError(msg)

    monkeypatch.setattr(cli_train, "train", train)
    assert command(["train", "--split", "takagi", "--rois", "V1, PPA", "--edges", "pixels", "--mixco"]) == 2
    assert command(["train"]) == 2
    assert heard == [Asked(mixco=True, pixels=True, choice=Choice(name="takagi", rois=("V1", "PPA"))), Asked()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--split", "halves"), "no split is called 'halves'"),
        (("--rois", "V1"), "leave the Semantic Extractor without voxels"),
        (("--rois", "V1,V9"), "no ROI is called 'V9'"),
        (("--split", "takagi", "--rois", "V1,EBA,VWFA-2,parietal"), "neither branch of the split 'takagi' reads a voxel of parietal"),
        (("--edges", "sounds"), "--edges takes latents or pixels"),
    ],
)
def test_the_command_line_refuses_before_it_encodes(arguments, words, cache, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(encoding, "prepare", lambda *_, **__: pytest.fail("it encoded first"))
    assert command(["train", "--out", str(tmp_path / "new"), *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


def test_pixel_edges_compare_the_generators_pictures_with_the_stimuli() -> None:
    world, model = SmallWorld(), tiny_model()
    found = pixel_edges(world, model)
    shown = found.stimuli(np.array([3, 1]))
    assert torch.equal(shown, resized(world.stimuli(np.array([3, 1])), model.side))
    latents = torch.from_numpy(model.encode_latents(world.stimuli(np.array([3, 1]))))
    assert 0 < float(found.loss(latents, np.array([3, 1]))) < 1
