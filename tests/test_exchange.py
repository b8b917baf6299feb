"""``havir diffuse``: what another decoder has written in, pictures out, and a sentence for whatever does not fit."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny_versatile import conditions, watched

from havir_explorer.cli import command
from havir_explorer.diffuse import exchange, weights
from havir_explorer.diffuse.sampler import generate
from havir_explorer.records import Settings


@pytest.fixture(scope="module")
def demo_model():
    return weights.load()


@pytest.fixture(scope="module")
def arrays(demo_model):
    decoded = conditions(demo_model, 2)
    return {"latents": decoded.latents, "image_embeds": decoded.image_embeds, "text_embeds": decoded.text_embeds}


def asked(tmp_path, *more):
    return ["diffuse", "--weights", "demo", "--decoded", str(tmp_path / "E.npz"), "--out", str(tmp_path / "O.npz"), "--steps", "2", *more]


def test_pictures_and_latents_come_out(arrays, demo_model, tmp_path, capsys):
    np.savez(tmp_path / "E.npz", **arrays)
    options = ("--seed", "3", "--scheduler", "ddim", "--strength", "1", "--guidance", "7.5", "--mix", "0.4", "--png", str(tmp_path / "png"), "--json")
    assert command(asked(tmp_path, *options)) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["pictures"], said["shape"]) == (2, [64, 64, 3])
    with np.load(tmp_path / "O.npz", allow_pickle=False) as found:
        assert sorted(found.files) == ["latents", "pictures"]
        assert (found["latents"].dtype, found["latents"].shape) == (np.float32, arrays["latents"].shape)
        assert (found["pictures"].dtype, found["pictures"].shape) == (np.uint8, (2, 64, 64, 3))
        settings = [Settings(seed=3, steps=2, strength=1, guidance=7.5, mix=0.4, scheduler="ddim")] * 2
        assert np.array_equal(found["latents"], generate(demo_model, exchange.read(tmp_path / "E.npz").decoded, settings).latents.numpy())
        for index, picture in enumerate(found["pictures"]):
            assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / f"{index:04d}.png")), picture)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["E.npz", "O.npz", "png"]


def test_noise_and_unconditional_embeddings_are_taken_from_the_file(arrays, demo_model, tmp_path):
    noise = np.random.default_rng(1).standard_normal(arrays["latents"].shape)  # float64, as a careless script writes it
    empty = {"uncond_image_embeds": np.zeros_like(arrays["image_embeds"][:1]), "uncond_text_embeds": np.zeros_like(arrays["text_embeds"])}
    np.savez(tmp_path / "E.npz", **arrays, **empty, noise=noise)
    given = exchange.read(tmp_path / "E.npz")
    settings = Settings(steps=2, strength=1)
    latents, _ = exchange.draw(demo_model, given, settings)
    expected = generate(demo_model, given.decoded, [settings] * 2, unconditional=given.unconditional, noise=noise.astype(np.float32)).latents.numpy()
    assert np.array_equal(latents, expected)
    assert not np.allclose(latents, generate(demo_model, given.decoded, [settings] * 2).latents.numpy(), atol=1e-3)


def test_rows_that_do_not_fit_at_once_are_drawn_one_after_the_other(arrays, demo_model, tmp_path, monkeypatch):
    np.savez(tmp_path / "E.npz", **arrays)
    given, told, batches = exchange.read(tmp_path / "E.npz"), [], []
    together = exchange.draw(demo_model, given, Settings(steps=2))[0]
    monkeypatch.setattr(exchange, "generate", watched(exchange.generate, batches, lambda: len(batches[-1]) == 1))
    apart = exchange.draw(demo_model, given, Settings(steps=2), on_notice=told.append)[0]
    assert [len(settings) for settings in batches] == [2, 1, 1]
    assert told == ["memory ran out; going on with 1 picture at once"]
    assert np.allclose(together, apart, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_embeds": None}, "lacks image_embeds"),
        ({"extra": np.zeros(1)}, "holds extra, which nobody reads here"),
        ({"uncond_text_embeds": np.zeros((1, 24, 64))}, "give both or neither"),
        ({"noise": np.zeros((1, 4, 16, 16))}, "noise in .* has 1 rows, its latents 2"),
        ({"uncond_image_embeds": np.zeros((3, 65, 64)), "uncond_text_embeds": np.zeros((1, 24, 64))}, "has 3 rows, its latents 2; give as many, or one"),
        ({"latents": np.zeros((2, 4, 16))}, r"latents in .* has shape \(2, 4, 16\); it must have 4 axes"),
        ({"latents": np.zeros((2, 4, 8, 8))}, r"latents have shape \(2, 4, 8, 8\), but this Versatile Diffusion takes \(2, 4, 16, 16\)"),
        ({"text_embeds": np.zeros((2, 77, 768))}, r"takes \(2, 24, 64\)"),
        ({"text_embeds": np.zeros((2, 24, 64), np.int64)}, "is of type int64; it must be floating point"),
        ({"text_embeds": np.full((2, 24, 64), 1e300)}, "text_embeds in .* holds a value that is not finite, in row 0"),
        ({"latents": np.zeros((0, 4, 16, 16))}, "holds no picture"),
        ({"latents": np.array([None])}, "not a readable .npz file of plain arrays"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(arrays, tmp_path, capsys, change, sentence):
    changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
    np.savez(tmp_path / "E.npz", **changed)
    assert command(asked(tmp_path)) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(sentence, said), said
    assert said.count("\n") == 0
    assert not (tmp_path / "O.npz").exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, capsys, content):
    (tmp_path / "E.npz").write_bytes(content)
    assert command(asked(tmp_path)) == 2
    assert "not a readable .npz file" in capsys.readouterr().err


def test_files_and_options_that_cannot_be_are_refused_before_anything_runs(arrays, tmp_path, capsys):
    assert command(asked(tmp_path)) == 2
    assert "there is no such file" in capsys.readouterr().err
    np.save(tmp_path / "E.npy", arrays["latents"])
    (tmp_path / "E.npy").rename(tmp_path / "E.npz")
    assert command(asked(tmp_path)) == 2
    assert "holds one array" in capsys.readouterr().err
    for option, value, said in (("--scheduler", "euler", "scheduler must be one of"), ("--seed", "-1", "seed must lie in"), ("--out", "O.txt", "end in .npz")):
        assert command(asked(tmp_path, option, value)) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command(asked(tmp_path, "--png", str(tmp_path / "file" / "png"))) == 2
    assert "cannot make the folder of --png" in capsys.readouterr().err


def test_reconstruct_takes_the_solver_the_interval_and_the_convention(cache, tmp_path, trial, capsys):
    chosen = {"scheduler": "unipc", "guidance_start": 0.25, "guidance_stop": 0.8, "convention": "mindeye"}
    options = [part for name, value in chosen.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert command(["reconstruct", "--trial", str(trial), "--steps", "4", "--out", str(tmp_path / "r.png"), "--json", *options]) == 0
    settings = json.loads(capsys.readouterr().out)["request"]["settings"]
    assert {name: settings[name] for name in chosen} == chosen
    assert command(["reconstruct", "--scheduler", "euler", "--out", str(tmp_path / "r.png")]) == 2
    assert "scheduler must be one of karras, ddim, unipc, dpmsolver++; got 'euler'" in capsys.readouterr().err
