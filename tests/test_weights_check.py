"""Checking and compacting a checkpoint, and what a picture costs: through the command line, at a small size."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from full_size import PUBLISHED, WEIGHTS, as_legacy
from safetensors.torch import load_file, save_file
from tiny_versatile import conditions

from havir_explorer import pipeline
from havir_explorer.cli import command
from havir_explorer.diffuse import checkpoint as checking
from havir_explorer.diffuse import compact, cost, source, weights
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.sampler import generate
from havir_explorer.diffuse.versatile import Conditions, VersatileUNet
from havir_explorer.errors import OutputError, WeightsMissing
from havir_explorer.records import Decoded, Settings

CPU = Place(torch.device("cpu"), torch.float32)
TOWERS = ("image_encoder", "image_feature_extractor", "text_encoder", "tokenizer")


@pytest.fixture
def checked(capsys):
    """Run ``havir weights check`` and return its exit code, its parts and its sentences."""

    def run(folder, *options: str) -> tuple[int, dict, list[str]]:
        capsys.readouterr()
        code = command(["weights", "check", str(folder), "--json", *options])
        printed = capsys.readouterr()
        said = [line for line in printed.err.splitlines() if line.startswith("havir: ")]
        return code, {part["part"]: part for part in json.loads(printed.out)["parts"]}, said

    return run


def test_a_whole_checkpoint_passes(checked, checkpoint):
    code, parts, said = checked(checkpoint)
    assert (code, said) == (0, [])
    assert {part["state"] for part in parts.values()} == {"fine"}
    vae = parts["vae"]
    assert (vae["file"], vae["dtype"]) == (WEIGHTS["vae"], "float32")
    assert vae["sha256"] == hashlib.sha256((checkpoint / WEIGHTS["vae"]).read_bytes()).hexdigest()
    assert vae["bytes"] == (checkpoint / WEIGHTS["vae"]).stat().st_size
    assert parts["text_unet"]["used"] == parts["text_unet"]["tensors"] - 1 == 104
    assert checked(checkpoint, "--no-checksums")[1]["vae"]["sha256"] == ""
    as_legacy(checkpoint, variant=".fp16", dtype=torch.float16)
    code, parts, _ = checked(checkpoint, "--variant", "fp16")
    assert (code, parts["vae"]["dtype"], parts["vae"]["file"]) == (0, "float16", "vae/diffusion_pytorch_model.fp16.bin")


def test_nothing_large_is_read_to_compare_shapes(checked, checkpoint, monkeypatch):
    monkeypatch.setattr(checking.parts.tensors, "read", lambda *_, **__: pytest.fail("it read the weights"))
    assert checked(checkpoint)[0] == 0


def test_every_fault_has_its_sentence(checked, checkpoint):
    state = load_file(checkpoint / WEIGHTS["vae"])
    save_file({**state, "decoder.conv_in.weight": torch.zeros(2, 2)}, checkpoint / WEIGHTS["vae"])
    (checkpoint / WEIGHTS["text_encoder"]).write_bytes((checkpoint / WEIGHTS["text_encoder"]).read_bytes()[:-10])
    (checkpoint / "scheduler" / "scheduler_config.json").unlink()
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("{")
    code, parts, said = checked(checkpoint)
    assert code == 2
    assert {name for name, part in parts.items() if part["state"] == "faulty"} == {"vae", "text_encoder", "scheduler", "tokenizer"}
    assert len(said) == 4
    for part, words in {"vae": "as (2, 2), expected (", "text_encoder": "truncated", "scheduler": "lacks its part", "tokenizer": "part tokenizer"}.items():
        assert [line for line in said if part in line.split(";")[0] and words in line and "havir weights fetch" in line]


def test_a_damaged_configuration_is_said_for_both_flows(checked, checkpoint):
    (checkpoint / "image_unet" / "config.json").write_text("{")
    code, parts, _ = checked(checkpoint)
    assert code == 2
    assert {name for name, part in parts.items() if part["state"] == "faulty"} == {"image_unet", "text_unet"}


def test_a_folder_that_is_not_there_is_a_sentence(capsys, own_cache, tmp_path):
    assert command(["weights", "check", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_compact_folder_draws_the_same_pictures(capsys, checkpoint, tmp_path, dtype):
    out = tmp_path / "compact"
    assert command(["weights", "compact", str(checkpoint), "--to", str(out), "--dtype", dtype, "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["bytes_after"] < sizes["bytes_before"]
    assert set(sizes["before"]) - set(sizes["after"]) == set(TOWERS)
    assert not list(tmp_path.rglob("*.part"))
    draws(weights.load(checkpoint, dtype=dtype), weights.load(out, dtype=dtype))


def test_the_demo_compacted_draws_the_same_pictures(own_cache, tmp_path, checked):
    done = compact.compact(source.locate("demo"), tmp_path / "demo")
    assert dict(done.after)["image_unet"] == dict(done.before)["image_unet"]
    draws(weights.load(), weights.load(tmp_path / "demo"))
    code, parts, _ = checked(tmp_path / "demo")
    assert code == 0
    assert {name for name, part in parts.items() if part["state"] == "left out"} == set(TOWERS)
    assert {part["compared_with"] for part in parts.values() if part["file"].endswith(".safetensors")} == {"the folder's record"}


def draws(whole, small) -> None:
    rng = np.random.default_rng(0)
    shapes = (whole.latent_shape, whole.empty_image.shape[1:], whole.empty_text.shape[1:])
    decoded = Decoded(*(rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes))
    left, right = (generate(model, decoded, [Settings(steps=4)]).latents for model in (whole, small))
    assert torch.isfinite(left).all()
    assert torch.equal(left, right)
    assert np.array_equal(whole.decode_latents(left), small.decode_latents(right))
    assert np.array_equal(whole.preview(left[0]), small.preview(right[0]))


def test_towers_are_kept_when_asked_for(own_cache, tmp_path):
    compact.compact(source.locate("demo"), tmp_path / "demo", towers=True)
    assert np.array_equal(weights.load(tmp_path / "demo").text_features(["a red ball"]), weights.load().text_features(["a red ball"]))


def test_a_changed_compact_folder_is_noticed_with_the_command_that_made_it(checked, own_cache, tmp_path):
    out = tmp_path / "demo"
    compact.compact(source.locate("demo"), out)
    content = bytearray((out / WEIGHTS["vae"]).read_bytes())
    content[-1] ^= 1
    (out / WEIGHTS["vae"]).write_bytes(bytes(content))
    code, _, said = checked(out)
    assert code == 2
    assert f"make it again with: havir weights compact demo --to {out} --dtype float16" in said[0]


def test_a_compact_folder_is_whole_or_absent(own_cache, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="there is something of that name already"):
        compact.compact(source.locate("demo"), out)
    (out / "mine.txt").unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compact, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        compact.compact(source.locate("demo"), out)
    assert [path.name for path in tmp_path.iterdir() if path.name != "havir-cache"] == ["demo"]
    assert not list(out.iterdir())


@pytest.mark.parametrize("part", ["vae", "text_unet", "scheduler", "image_encoder", "tokenizer"])
def test_a_part_that_cannot_be_compacted_is_named_and_not_the_new_folder(checkpoint, tmp_path, part):
    shutil.rmtree(checkpoint / part)
    with pytest.raises(WeightsMissing, match=f"lacks its part {part}: expected {part}/") as said:
        compact.compact(source.locate(checkpoint), tmp_path / "compact", towers=True)
    assert "cannot write" not in str(said.value)
    assert not list(tmp_path.glob("*compact*"))


def test_a_reconstruction_needs_neither_tower(cache, request_, tmp_path, capsys):
    compact.compact(source.locate("demo"), tmp_path / "demo")
    assert not (tmp_path / "demo" / "image_encoder").exists()
    whole, small = pipeline.run(request_), pipeline.run(replace(request_, generator=str(tmp_path / "demo")))
    assert np.array_equal(whole.picture, small.picture)
    assert [score.name for score in small.scores] == ["PixCorr", "SSIM"]
    assert [score.value for score in small.scores] == [score.value for score in whole.scores][:2]
    assert command(["reconstruct", "--generator", str(tmp_path / "demo"), "--steps", "2", "--out", str(tmp_path / "r.png")]) == 0
    assert "holds no CLIP image tower" in capsys.readouterr().out


# What a picture costs


def test_operations_of_a_step_are_those_of_the_denoiser_itself(original):
    """Counted on our dual denoiser as it runs, against what is counted on its configuration."""
    from torch.utils.flop_counter import FlopCounterMode

    found = source.locate(original)
    config = found.config("image_unet")
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        rows = [torch.empty(2, *shape) for shape in ((4, 8, 8), (5, 24), (6, 24))]
        VersatileUNet(config)(rows[0], torch.ones(2), Conditions(rows[1], rows[2], torch.empty(2)))
    both = cost.estimate(found, Settings(guidance=3, mix=0.4), CPU)
    assert both.step_flops == counter.get_total_flops()
    image, text = (cost.estimate(found, Settings(guidance=1, mix=mix), CPU).step_flops for mix in (0, 1))
    assert both.step_flops / 2 < image + text < both.step_flops


def test_seconds_follow_steps_and_strength(original, monkeypatch):
    monkeypatch.setattr(cost, "_speed", lambda _: 1e9)
    found = source.locate(original)
    none, some, all_ = (cost.estimate(found, Settings(steps=20, strength=strength), CPU) for strength in (0, 0.5, 1))
    assert (none.steps, some.steps, all_.steps) == (0, 10, 20)
    assert all_.seconds - some.seconds == pytest.approx(some.seconds - none.seconds)
    assert none.seconds == pytest.approx(2 * none.decode_flops / (cost._SHARE * 1e9))
    assert not none.is_long
    assert cost.estimate(found, Settings(), Place(CPU.device, torch.bfloat16)).bytes == none.bytes / 2
    halved = sum(weight.numel() for weight in weights.load(found.root, dtype="float16").unet.parameters()) * 2  # the autoencoder stays float32
    assert cost.estimate(found, Settings(), Place(CPU.device, torch.float16)).bytes == none.bytes - halved


def test_a_long_wait_is_announced_and_a_short_one_is_not(cache, request_, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(weights.demo_folder(), tmp_path / "vd")
    arguments = ["reconstruct", "--generator", str(folder), "--steps", "2", "--out", str(tmp_path / "r.png")]
    assert command(arguments) == 0
    assert "one picture will take" not in capsys.readouterr().err
    monkeypatch.setattr(cost, "_speed", lambda _: 1e6)
    assert command([*arguments, "--seed", "1"]) == 0
    said = capsys.readouterr().err
    assert "one picture will take about" in said
    assert "on cpu (1 steps)" in said
    assert "--steps" in said


def test_drawing_what_another_decoder_wrote_is_announced_too(own_cache, tmp_path, capsys, monkeypatch):
    folder, model = shutil.copytree(weights.demo_folder(), tmp_path / "vd"), weights.load()
    given = conditions(model, 2)
    np.savez(tmp_path / "E.npz", latents=given.latents, image_embeds=given.image_embeds, text_embeds=given.text_embeds)
    arguments = ["diffuse", "--weights", str(folder), "--decoded", str(tmp_path / "E.npz"), "--out", str(tmp_path / "O.npz"), "--steps", "2"]
    monkeypatch.setattr(cost, "_speed", lambda _: 1e12)
    assert command(arguments) == 0
    assert "one picture will take" not in capsys.readouterr().err
    monkeypatch.setattr(cost, "_speed", lambda _: 1e6)
    assert command(arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "one picture will take about" in said
    assert "on cpu (1 steps), 2 were asked for" in said


def test_the_published_denoiser_is_as_large_as_published():
    flops = cost._step_flops(cost._frozen(PUBLISHED.unet), 77)
    assert 0.7e12 < flops.rest + flops.attention < 0.9e12  # 2 x the 0.4 T multiplications of Stable Diffusion 1's, of which it is a copy
