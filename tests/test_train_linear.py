"""``havir train`` on a small world: the linear baseline, and who reports."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_world import TEST, TRAIN, SmallEncoder, SmallWorld

from havir_explorer import cli
from havir_explorer.cli import train as cli_train
from havir_explorer.decode import cohort, decoders, machine
from havir_explorer.decode.targets import Targets, build
from havir_explorer.errors import RequestError


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


@pytest.mark.parametrize(
    "option", [["--steps", "5"], ["--branch", "semantic"], ["--mixco"], ["--edges", "pixels"], ["--tensorboard"], ["--batch", "8"], ["--size", "full"]]
)
def test_what_only_havir_has_is_refused(option: list[str], world: SmallWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["train", "--method", "linear", "--out", str(tmp_path), *option]) == 2
    assert "--method linear has no steps, sizes or batches" in " ".join(capfd.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_one_reports(world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "leads", lambda device: False)
    monkeypatch.setattr(cli_train, "trained", lambda *_, **__: [])
    for json_ in ([], ["--json"]):
        assert cli.command(["train", "--out", str(tmp_path), "--device", "cpu", *json_]) == 0
        assert capfd.readouterr().out == ""


def test_the_generator_is_let_go_and_a_small_size_said_before_the_training(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the published size the generator takes gigabytes of the same device."""

    class Generator:
        pass

    def targets(*_: object) -> tuple[SimpleNamespace, Generator]:
        model = Generator()
        known.append(weakref.ref(model))
        return SimpleNamespace(shapes=SimpleNamespace(latents=(4, 8, 8)), caption_target="mean", image_source="stimulus"), model

    def fit(*_: object, **__: object) -> None:
        alive.append(known[0]() is not None)
        msg = "enough"
        raise RequestError(msg)

    known, alive = list[weakref.ref[Generator]](), list[bool]()
    monkeypatch.setattr(cli_train, "_targets", targets)
    monkeypatch.setattr(cohort, "fit_cohort", fit)
    assert cli.command(["train", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert alive == [False]
    assert "--size full" not in capfd.readouterr().err
    monkeypatch.setattr(world, "synthetic", False)
    assert cli.command(["train", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "the small size is made for the teaching world; for small take --size full" in " ".join(capfd.readouterr().err.split())


def test_an_unknown_method_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["train", "--method", "ridge"]) == 2
    assert "linear" in capfd.readouterr().err
