"""What ``havir train`` understands of sizes, files of options, splits, ROIs, edges and mixing, and what it refuses before it encodes anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import SmallWorld
from tiny_versatile import tiny_model

from havir_explorer import encoding
from havir_explorer.cli import command
from havir_explorer.cli import train as cli_train
from havir_explorer.cli.train_asked import Asked, asked, pixel_edges, shape
from havir_explorer.decode.options import Options
from havir_explorer.decode.presets import FULL, changed, preset
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

    monkeypatch.setattr(cli_train, "trained", train)
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
        (("--subject", "subj01,subj9"), "has no subject 'subj9'; nearest"),
        (("--images", "dreams"), "--images takes stimulus or synthesised; got 'dreams'"),
        (("--freeze",), "--freeze leaves another subject's trunk as it is, and none was named"),
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
    latents = torch.from_numpy(model.encode_latents(world.stimuli(np.array([3, 1])))).requires_grad_()
    loss = found.loss(latents, np.array([3, 1]))
    assert 0 < float(loss.detach()) < 1
    torch.autograd.backward(loss)
    at_once = latents.detach().clone().requires_grad_()
    model.vae.disable_gradient_checkpointing()
    torch.autograd.backward(found.loss(at_once, np.array([3, 1])))
    assert torch.allclose(latents.grad, at_once.grad, atol=1e-7)  # what is kept changes nothing
    assert found.needs == 36 * 8 * model.side**2 * 4


def test_a_decoded_pictures_gradient_keeps_its_blocks_inputs_alone() -> None:
    """What would be 8 GB at the published size is drawn again, block by block, for the gradient."""
    model, calls = tiny_model(), list[int]()
    found = pixel_edges(SmallWorld(), model)
    block = model.vae.decoder.up_blocks[-1]
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.autograd.backward(found.loss(torch.zeros(1, *model.latent_shape, requires_grad=True), np.array([3])))
    handle.remove()
    model.vae.disable_gradient_checkpointing()
    assert len(calls) == 3  # forward, again for the whole decoder's gradient, and again for the block's own


# sizes and files


def test_the_full_size_follows_the_latents_and_the_published_widths() -> None:
    full, small = preset("full", (4, 64, 64)), preset("small", (4, 16, 16))
    assert (full.structural.width, full.structural.blocks, full.structural.maps, full.structural.doublings) == (4096, 4, 64, 2)
    assert (full.semantic.width, full.semantic.blocks) == (2048, 4)
    assert small == Options()
    assert preset("full", (4, 96, 96)).structural.doublings == 3


def test_a_file_changes_the_size_and_the_command_line_changes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('batch = 5\nstructural_rate = 1e-4\n[semantic]\nwidth = 300\n[choice]\nname = "all"\n')
    found = shape("full", file, epochs=2.5, batch=None, patience=3, precision="bf16").changed(FULL)
    wanted = replace(FULL, batch=5, structural_rate=1e-4, semantic=FULL.semantic.model_copy(update={"width": 300}), choice=Choice(name="all"))
    assert found == replace(wanted, epochs=2.5, patience=3, precision="bf16")
    file.with_suffix(".json").write_text(json.dumps({"batch": 9, "structural": {"width": 8}}))
    read = shape("small", file.with_suffix(".json"), epochs=None, batch=None, patience=None, precision=None).changed(Options())
    assert (read.batch, read.structural.width, read.structural.blocks) == (9, 8, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch = 0", "sets batch to 0, but it should be greater than 0"),
        ("bach = 3", "sets 'bach', which is no option of a training; nearest: batch"),
        ("[semantic]\nwide = 3", "sets semantic.wide to 3, but it is no option"),
        ("held_out = 0.7", "sets held_out to 0.7, but it should be less than 0.5"),
        ("batch =", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text(text)
    with pytest.raises(RequestError) as caught:
        changed(Options(), tmp_path / "options.toml")
    assert words in str(caught.value)
    assert str(tmp_path / "options.toml") in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "huge"), "--size takes small or full; got 'huge'"),
        (("--branch", "both"), "--branch takes structural or semantic; got 'both'"),
        (("--precision", "int8"), "--precision takes no or bf16 or fp16; got 'int8'"),
        (("--steps", "9", "--epochs", "2"), "--steps 9 and --epochs 2 both say how long to train"),
        (("--batch", "0"), "--batch must be 1 or more; got 0"),
        (("--device", "abacus"), "device 'abacus' was asked for"),
        (("--options", "missing.toml"), "the options in missing.toml cannot be read"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused_before_it_encodes(arguments, words, cache, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(encoding, "prepare", lambda *_, **__: pytest.fail("it encoded first"))
    assert command(["train", "--out", str(tmp_path / "new"), *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
