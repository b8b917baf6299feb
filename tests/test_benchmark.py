"""The benchmark of drawing runs in all its parts, at a size where its figures mean nothing."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_versatile import UNET, conditions, tiny_model

from havir_explorer.diffuse import weights
from havir_explorer.diffuse.versatile import VersatileUNet

PUBLISHED = {**UNET, "cross_attention_dim": 768}


@pytest.fixture
def small(monkeypatch, request_):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import diffusion

    monkeypatch.setattr(diffusion, "THEIRS", replace(diffusion.THEIRS, steps=3))
    monkeypatch.setattr(diffusion, "REFERENCE_STEPS", 4)
    monkeypatch.setattr(diffusion, "OURS", replace(diffusion.THEIRS, steps=4))
    monkeypatch.setattr(diffusion, "PUBLISHED", PUBLISHED)
    monkeypatch.setattr(diffusion, "scene", scene)
    monkeypatch.setattr(diffusion, "lesions", lambda: [request_, request_])
    monkeypatch.setattr(diffusion, "memory", list)
    monkeypatch.setattr(diffusion, "weights", SimpleNamespace(load=lambda **_place: tiny_model()))
    monkeypatch.setattr(VersatileUNet, "compile_steps", lambda _self: None)
    return diffusion


def scene(_model, count):
    model = tiny_model()
    noise = np.random.default_rng(1).standard_normal((count, *model.latent_shape)).astype(np.float32)
    return sys.modules["diffusion"].Scene(model, conditions(model, count), noise)


def test_every_part_is_measured(small):
    rows = small.measure(["a", "compiled", "b", "c", "published"], 1, 2, time.perf_counter)
    found = {row.name: row for row in rows}
    assert "pictures differ by 0 of 255" in found["(a) same scheduler, 50 steps"].how or "by 1 of 255" in found["(a) same scheduler, 50 steps"].how
    assert found["(b) equal quality, to ddim 4"].value > 0
    ours, theirs = (next(row.value for row in rows if row.name == f"    {name}") for name in ("ours, ddim 4", "diffusers, ddim 3"))
    assert ours == pytest.approx(100)  # four steps of the reference's own solver are the reference
    assert theirs < 100
    assert found["(c) grid of 24 lesions"].value > 0
    assert "one guided step on the CPU" in found["(a) published size, a guided step"].how


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_run_where_and_as_the_generator_does(small, monkeypatch, dtype):
    """In half precision here, for want of a second device: what is loaded otherwise cannot take the generator's embeddings."""
    monkeypatch.setenv("HAVIR_DTYPE", str(dtype))
    made = []

    def load(*, device, dtype):
        made.append((device, dtype))
        return weights.load(device=device, dtype=dtype)

    monkeypatch.setattr(small, "weights", SimpleNamespace(load=load))
    monkeypatch.setattr(small, "scene", lambda model, count: small.Scene(model, conditions(model, count), conditions(model, count).latents))
    rows = small.measure(["compiled"], 1, 1, time.perf_counter)
    assert made == [(torch.device("cpu"), dtype)] * 2
    assert all(row.value > 0 for row in rows)


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_the_memory_of_one_picture_is_measured(small, who, capsys):
    small.alone(who)
    assert float(capsys.readouterr().out) > 0
