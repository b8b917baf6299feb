"""``havir train --method linear``, on a small world."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_world import TEST, TRAIN, SmallEncoder, SmallWorld

from havir_explorer import cli
from havir_explorer.cli import train as cli_train
from havir_explorer.decode import decoders
from havir_explorer.decode.targets import Targets, build


@dataclass(frozen=True, eq=False)
class Store(Targets):
    caption_target: str = "first"
    image_source: str = "stimulus"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SmallWorld:
    world = SmallWorld()
    made = build(world, np.arange(TRAIN + TEST), SmallEncoder())
    store = Store(made.latents, made.image_embeds, made.text_embeds, made.nsd_ids)
    monkeypatch.setattr(cli_train, "_tree", lambda dataset, subject: world)
    monkeypatch.setattr(cli_train, "_targets", lambda tree, source: (store, None))
    return world


def test_the_baseline_is_trained_with_its_cost_said_first(world: SmallWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["train", "--method", "linear", "--out", str(tmp_path), "--seed", "4", "--device", "cpu", "--json"]) == 0
    said = capfd.readouterr()
    assert "linear decoder: 90 images, 50 voxels" in " ".join(said.err.split())
    facts = json.loads(said.out)
    assert facts["weights"] == str(tmp_path)
    assert facts["training_images"] == TRAIN
    decoder = decoders.load(tmp_path)
    assert decoder.manifest.kind == "linear"
    assert decoder.manifest.record.seed == 4
    assert decoder.manifest.record.caption_target == "first"
    assert (tmp_path / "card.md").read_text().startswith("# Linear decoder")


def test_it_goes_where_a_request_for_the_linear_decoder_looks(world: SmallWorld, own_cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["train", "--method", "linear", "--device", "cpu"]) == 0
    assert decoders.load(own_cache / "linear" / "small" / "subj01").manifest.kind == "linear"
    assert "use it with --decoder" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("option", [["--steps", "5"], ["--branch", "semantic"], ["--mixco"], ["--edges", "pixels"], ["--tensorboard"]])
def test_what_only_havir_has_is_refused(option: list[str], world: SmallWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["train", "--method", "linear", "--out", str(tmp_path), *option]) == 2
    assert "--method linear has no steps" in " ".join(capfd.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_method_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["train", "--method", "ridge"]) == 2
    assert "linear" in capfd.readouterr().err
