"""The published size, with random weights: loaded, checked, stepped, decoded and compacted, each in a process of its own that reports its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import full_size
import pytest

pytestmark = [pytest.mark.fullsize, pytest.mark.timeout(3600)]

DRAW = """
import json, sys, time
import numpy as np, psutil, torch
from havir_explorer.diffuse import cost, device, source, weights
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.sampler import generate
from havir_explorer.records import Decoded, Settings

process = psutil.Process()
def peak():  # the resource usage would begin with what the test's own process held
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
def clock(work):
    began = time.perf_counter(); result = work()
    return result, time.perf_counter() - began
def timed(name, work):
    began = time.process_time(); result, said[name + "_s"] = clock(work); said[name + "_cpu_s"] = time.process_time() - began
    return result

folder, dtype, *only = sys.argv[1:]
settings = Settings(steps=1, strength=1.0, guidance=7.5, mix=0.4)
guess, counting = clock(lambda: cost.estimate(source.locate(folder), settings, Place(torch.device("cpu"), device.dtype(dtype))))
before = process.memory_info().rss
said = {"dtype": dtype, "threads": torch.get_num_threads()}
model = timed("load", lambda: weights.load(folder, dtype=dtype))
loaded, kept = peak() - before, sum(p.numel() * p.element_size() for m in (model.unet, model.vae) for p in m.parameters())
said |= {"kept": kept, "load_peak": loaded, "load_ratio": loaded / kept}
said["parameters"] = sum(p.numel() for m in (model.unet, model.vae) for p in m.parameters())
if not only:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal((1, *shape)).astype(np.float32)
    decoded = Decoded(draw(*model.latent_shape), draw(*model.empty_image.shape[1:]), draw(*model.empty_text.shape[1:]))
    drawn = timed("step", lambda: generate(model, decoded, [settings]))
    said["step_peak"] = peak()
    picture = timed("decode", lambda: model.decode_latents(drawn.latents))
    shown = torch.from_numpy(decoded.latents[0])
    said |= {"peak": peak(), "shape": picture.shape, "finite": bool(torch.isfinite(drawn.latents).all())}
    said["preview_s"] = min(clock(lambda: model.preview(shown))[1] for _ in range(20))
    said |= {"estimate_s": guess.seconds, "estimate_bytes": guess.bytes, "count_s": counting, "step_tflop": guess.step_flops / 1e12}
    said |= {"decode_tflop": guess.decode_flops / 1e12, "matmul_gflops": cost._speed(Place(torch.device("cpu"), device.dtype(dtype))) / 1e9}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return full_size.write(tmp_path_factory.mktemp("published") / "vd", full_size.PUBLISHED)


def told(folder: Path, *command: str) -> dict:
    environment = {**os.environ, "HAVIR_CACHE": str(folder.parent / "cache")}
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def test_it_loads_steps_and_decodes(folder):
    """The first load also encodes the unconditional embeddings with both towers; the next finds them in the cache."""
    found = told(folder, "-c", DRAW, str(folder), "float32")
    print(f"\nfloat32: {json.dumps(found)}")
    assert found["parameters"] == pytest.approx(1.21e9, rel=0.01)
    assert found["load_ratio"] <= 1.3
    assert found["peak"] < 20e9
    assert found["shape"] == [1, 512, 512, 3]
    assert found["finite"]
    assert found["preview_s"] < 0.005
    assert 0.5 < found["estimate_s"] / (found["step_s"] + 2 * found["decode_s"]) < 2
    assert found["estimate_bytes"] == pytest.approx(found["peak"], rel=0.3)
    half = told(folder, "-c", DRAW, str(folder), "bfloat16", "load only")
    print(f"\nbfloat16: {json.dumps(half)}")
    assert half["kept"] == found["kept"] / 2
    assert half["load_ratio"] <= 1.3


def test_it_passes_its_check_and_its_compact_copy_loads(folder):
    havir = ("-c", "import sys; from havir_explorer.cli import command; sys.exit(command(sys.argv[1:]))", "weights")
    checked = told(folder, *havir, "check", str(folder), "--json")
    assert checked["usable"]
    assert {part["part"]: part["used"] for part in checked["parts"]}["text_unet"] == 416
    small = folder.parent / "compact"
    sizes = told(folder, *havir, "compact", str(folder), "--to", str(small), "--json")
    print(f"\ncompact: {json.dumps(sizes)}")
    assert sizes["bytes_after"] < 0.45 * sizes["bytes_before"]
    assert told(folder, *havir, "check", str(small), "--json")["usable"]
    for dtype in ("float32", "float16"):
        found = told(folder, "-c", DRAW, str(small), dtype, "load only")
        print(f"\ncompact, loaded as {dtype}: {json.dumps(found)}")
        assert found["load_ratio"] <= 1.3
