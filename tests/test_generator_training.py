"""The loops that train the small Versatile Diffusion: they learn, and a stopped run goes on as if it had not been."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from tiny_versatile import SCHEDULER, UNET

from havir_explorer.data.demo import record, scenes
from havir_explorer.data.demo import train as script
from havir_explorer.diffuse import train as loops
from havir_explorer.diffuse import weights
from havir_explorer.diffuse.versatile import VersatileUNet


@pytest.fixture
def pictures():
    return np.stack([scenes.draw(scenes.scene(n), 16) for n in range(12)])


def seeded(build):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        return build()


def small_vae():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, **blocks)


def test_a_resumed_run_ends_at_the_same_weights(pictures, tmp_path):
    schedule = loops.Schedule(steps=6, batch=4, learning_rate=1e-3)

    def run(folder, limit):
        vae = seeded(small_vae)
        losses = loops.autoencoder_loss(vae, pictures, 4)
        drawn = iter(range(limit))

        def loss(generator):
            if next(drawn, None) is None:
                raise KeyboardInterrupt
            return losses(generator)

        loops.fit({"vae": vae}, loss, schedule, folder, averaged=("vae",), every=2)
        return vae.state_dict()

    whole = run(tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 5)  # stopped after the checkpoint of step 4
    resumed = run(tmp_path / "cut", 2)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_autoencoder_learns(pictures, tmp_path):
    vae = seeded(small_vae)
    loops.fit({"vae": vae}, loops.autoencoder_loss(vae, pictures, 8), loops.Schedule(60, 8, 4e-3), tmp_path, every=10)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_both_flows_learn(tmp_path):
    unet = seeded(lambda: VersatileUNet(UNET))
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    data = loops.FlowData(draw(1, 4, 8, 8).expand(8, -1, -1, -1), draw(8, 5, 24), draw(8, 6, 24), torch.arange(8)[:, None], draw(1, 5, 24), draw(1, 6, 24))
    before = [{k: v.clone() for k, v in flow.items() if "attn2" in k} for flow in unet.flows()]
    loops.fit({"unet": unet}, loops.flow_loss(DDIMScheduler(**SCHEDULER), data, 8, unet), loops.Schedule(40, 8, 3e-3), tmp_path, every=10)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    for old, new in zip(before, unet.flows(), strict=True):
        assert any(not torch.equal(old[key], new[key]) for key in old)


def test_the_record_keeps_earlier_runs_and_renews_its_own(tmp_path):
    log = tmp_path / "log.jsonl"
    how = {"began": "b", "device": "a CPU", "batch": 4, "loss": 1.0}
    lines = [{**how, "step": step, "seconds": seconds} for step, seconds in ((200, 10.0), (400, 20.0), (600, 9.0))]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    earlier = [{"began": "a", "steps": 5}, {"began": "b", "steps": 200}]
    runs = record._runs(earlier, log)
    assert [r["began"] for r in runs] == ["a", "b"]
    assert (runs[1]["steps"], runs[1]["wall_seconds"], runs[1]["resumed"], runs[1]["device"]) == (600, 29, 1, "a CPU")
    assert record._runs(earlier, tmp_path / "none.jsonl") == earlier


@pytest.mark.slow
def test_one_command_trains_every_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "POOL", 300)
    monkeypatch.setattr(record, "SHEET", 8)
    out = tmp_path / "weights"
    monkeypatch.setattr("sys.argv", ["train", "--work", str(tmp_path / "work"), "--out", str(out), "--steps", "2", "--batch", "4", "--device", "cpu"])
    with torch.random.fork_rng():
        script.main()
    written = json.loads((out / "record.json").read_text())
    assert {stage: [run["steps"] for run in runs] for stage, runs in written["stages"].items()} == {"vae": [2], "clip": [2], "flows": [2]}
    assert weights.load(out).latent_shape == weights.load().latent_shape
