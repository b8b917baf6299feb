"""Bad input, one case at a time, through the command line: one clear sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from havir_explorer import encoding
from havir_explorer.cli import command
from havir_explorer.decode import targets
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.train import fit
from havir_explorer.errors import OutputError

BETAS = Path("nsddata_betas", "ppdata", "subj01", "func1pt8mm")
BRICK = Path("nsddata_stimuli", "stimuli", "nsd", "nsd_stimuli.hdf5")
QUICK = ("--steps", "2")


@pytest.fixture
def picture(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "r.png"


@pytest.fixture
def refused(capsys, picture, tmp_path):
    """Run a command that must be refused and return its one sentence."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = command([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert code == 2, printed.err
        lines = [line for line in printed.err.splitlines() if line.startswith("havir: ")]
        assert len(lines) == 1
        assert "Traceback" not in printed.err
        assert printed.out == ""
        assert list(picture.parent.iterdir()) == [], "a refused request leaves nothing behind"
        return lines[0]

    return run


@pytest.fixture
def weights(tmp_path) -> Path:
    """A copy of the demo's Versatile Diffusion to damage, made of links."""
    from havir_explorer.diffuse import weights

    folder = tmp_path / "versatile-diffusion"
    shutil.copytree(weights.demo_folder(), folder, copy_function=os.symlink)
    return folder


def test_unknown_subject(refused, cache, picture):
    sentence = refused("reconstruct", "--subject", "subj77", "--out", picture)
    assert "subj77" in sentence
    assert "subj01" in sentence


@pytest.mark.parametrize("trial", [-1, 10_000_000])
def test_trial_out_of_range(refused, cache, picture, trial):
    sentence = refused("reconstruct", "--trial", trial, "--out", picture)
    assert "trial" in sentence
    assert str(trial) in sentence


def test_unknown_roi_comes_with_the_nearest_names(refused, cache, picture):
    sentence = refused("reconstruct", "--mute", "FFA", "--out", picture)
    assert "'FFA'" in sentence
    assert "FFA-1" in sentence


def test_mask_that_leaves_no_voxel(refused, cache, picture):
    assert "voxel" in refused("reconstruct", "--keep", "FFA-1", "--mute", "FFA-1", "--out", picture)


OUT_OF_RANGE = [("strength", "1.5"), ("strength", "-0.1"), ("mix", "2"), ("mix", "-1"), ("mix", "nan"), ("guidance", "0"), ("steps", "0")]


@pytest.mark.parametrize(("option", "value"), OUT_OF_RANGE)
def test_setting_out_of_range(refused, cache, picture, option, value):
    sentence = refused("reconstruct", f"--{option}", value, "--out", picture)
    assert option in sentence
    assert value.removesuffix(".0") in sentence


def test_option_that_is_no_number(capsys, picture):
    assert command(["reconstruct", "--steps", "many", "--out", str(picture)]) == 2
    assert "--steps" in capsys.readouterr().err


def test_data_set_that_is_not_there(refused, picture, tmp_path):
    assert str(tmp_path / "nowhere") in refused("reconstruct", "--dataset", tmp_path / "nowhere", "--out", picture)


def beta_files(tree: Path) -> list[Path]:
    files = sorted((tree / BETAS).rglob("betas_session*.hdf5"))
    assert files
    return files


def test_missing_beta_file(refused, tree, picture):
    beta_files(tree)[0].unlink()
    sentence = refused("reconstruct", "--dataset", tree, "--trial", 0, "--repeats", "single", *QUICK, "--out", picture)
    assert "trial 0" in sentence or "session" in sentence


def test_truncated_beta_file(refused, tree, picture):
    beta = beta_files(tree)[0]
    with beta.open("rb") as file:
        start = file.read(5000)
    beta.unlink()
    beta.write_bytes(start)
    sentence = refused("reconstruct", "--dataset", tree, "--trial", 0, "--repeats", "single", *QUICK, "--out", picture)
    assert str(beta) in sentence
    assert "truncated" in sentence


def test_stimulus_file_of_another_shape(refused, tree, picture):
    brick = tree / BRICK
    brick.unlink()
    with h5py.File(brick, "w") as file:
        file.create_dataset("imgBrick", data=np.zeros((10, 8, 8, 4), np.uint8))
    sentence = refused("reconstruct", "--dataset", tree, *QUICK, "--out", picture)
    assert str(brick) in sentence
    assert "(10, 8, 8, 4)" in sentence


def test_roi_file_without_its_ctab(refused, tree, picture):
    tables = list(tree.rglob("floc-faces*.ctab"))
    assert tables
    for table in tables:
        table.unlink()
    sentence = refused("reconstruct", "--dataset", tree, *QUICK, "--out", picture)
    assert "floc-faces" in sentence
    assert ".ctab" in sentence


@pytest.mark.parametrize("part", ["vae/config.json", "text_unet/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors"])
def test_weights_folder_missing_a_part(refused, cache, weights, picture, part):
    (weights / part).unlink()
    sentence = refused("reconstruct", "--generator", weights, *QUICK, "--out", picture)
    assert str(weights) in sentence
    assert part in sentence


def test_truncated_weights(refused, cache, weights, picture):
    file = weights / "vae" / "diffusion_pytorch_model.safetensors"
    start = file.read_bytes()[:1000]
    file.unlink()
    file.write_bytes(start)
    assert "vae" in refused("reconstruct", "--generator", weights, *QUICK, "--out", picture)


def test_manifest_of_another_subject(refused, cache, picture):
    from havir_explorer.paths import shipped_weights

    other = shipped_weights() / "havir" / "subj02"
    sentence = refused("reconstruct", "--subject", "subj01", "--decoder", other, *QUICK, "--out", picture)
    assert "subj01" in sentence
    assert "subj02" in sentence


def test_corrupt_cache_entry_is_computed_again(capsys, cache, picture):
    arguments = ["reconstruct", *QUICK, "--out", str(picture), "--json"]
    found = []
    for damage in (False, False, True):
        if damage:
            entries = list((cache / "results").glob("*.npz"))
            assert len(entries) == 1
            entries[0].write_bytes(entries[0].read_bytes()[:100])
        assert command(arguments) == 0
        found.append((json.loads(capsys.readouterr().out)["cached"], np.asarray(Image.open(picture)).tobytes()))
    assert [cached for cached, _ in found] == [False, True, False]
    assert len({pixels for _, pixels in found}) == 1


STRANGERS = {"notes.json": b'{"title": "not a recipe"}', "broken.json": b"{", "list.json": b"[]", "text.png": b"no picture"}


@pytest.mark.parametrize(("name", "content"), STRANGERS.items())
def test_recipe_that_is_not_ours(refused, cache, picture, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refused("reconstruct", "--recipe", tmp_path / name, "--out", picture)


def test_picture_without_a_recipe(refused, cache, picture, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    assert "holiday.png" in refused("reconstruct", "--recipe", tmp_path / "holiday.png", "--out", picture)


def test_recipe_that_is_not_there(refused, cache, picture, tmp_path):
    assert "gone.png" in refused("reconstruct", "--recipe", tmp_path / "gone.png", "--out", picture)


@pytest.mark.parametrize("where", ["missing/r.png", "a-file/r.png", "a-folder"])
def test_output_path_that_cannot_be_written(refused, cache, tmp_path, where):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a-folder").mkdir()
    for name in ("reconstruct", "map"):
        assert str(tmp_path / where) in refused(name, "--out", tmp_path / where)


@pytest.fixture
def full(monkeypatch):
    """Fill the disk under a folder: half of a file is written there, the rest finds no room."""
    whole = Path.write_bytes

    def fill(folder: Path) -> None:
        def write(path: Path, content: bytes) -> int:
            if not path.is_relative_to(folder):
                return whole(path, content)
            whole(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", write)

    return fill


def test_full_disk(refused, cache, picture, full):
    full(picture.parent)
    assert "disk is full" in refused("reconstruct", *QUICK, "--out", picture)


def test_full_disk_under_the_cache_costs_the_memory_not_the_picture(capsys, cache, picture, full):
    full(cache / "results")
    assert command(["reconstruct", *QUICK, "--out", str(picture), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["cached"] is False
    assert [line for line in printed.err.splitlines() if "disk is full" in line] == [printed.err.strip().splitlines()[-1]]
    assert sorted(p.name for p in picture.parent.iterdir()) == ["r.json", "r.png"]
    assert Image.open(picture).size == (64, 64)
    assert not list((cache / "results").iterdir())


def test_recipe_in_the_place_of_a_users_own_file(refused, cache, tmp_path, monkeypatch):
    """Said before anything is drawn."""
    from havir_explorer import pipeline

    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("it was drawn first"))
    (tmp_path / "data.json").write_text('{"subjects": 8}')
    assert "data.json" in refused("reconstruct", *QUICK, "--out", tmp_path / "data.png")
    assert (tmp_path / "data.json").read_text() == '{"subjects": 8}'


@pytest.mark.parametrize("place", ["checkpoint-structural.pt", "losses-semantic.csv", "model.safetensors", "manifest.json"])
def test_training_that_finds_no_room_is_a_sentence(tmp_path, place):
    """A folder in the way fails as a full disk does: with an error of torch's, of safetensors' or of the system."""
    from small_world import TEST, TRAIN, SmallEncoder, SmallWorld

    world = SmallWorld()
    small = Options(structural=StructuralSizes(width=8, blocks=1, maps=4, channels=8), semantic=SemanticSizes(width=8, blocks=1), held_out=0.2, save_every=2)
    (tmp_path / f"{place}.part").mkdir()
    with pytest.raises(OutputError, match="cannot write") as caught:
        fit(world, "subj01", targets.build(world, np.arange(TRAIN + TEST), SmallEncoder()), tmp_path, steps=3, options=small)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == [f"{place}.part"], "what was half-written is gone"


def test_training_into_a_folder_of_someone_elses_is_refused_first(refused, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(encoding, "prepare", lambda *_, **__: pytest.fail("it trained first"))
    sentence = refused("train", "--out", tmp_path / "theirs")
    assert str(tmp_path / "theirs") in sentence
    assert "--out" in sentence


OTHERS = [("map", "--branch", "sideways"), ("evaluate", "--conditions", "nonsense"), ("evaluate", "--limit", "0"), ("train", "--subject", "subj77")]


@pytest.mark.parametrize("arguments", OTHERS)
def test_other_commands_refuse_too(refused, cache, tmp_path, arguments):
    where = ("--out", tmp_path / "map.png") if arguments[0] == "map" else ()
    assert arguments[-1] in refused(*arguments, *where)
