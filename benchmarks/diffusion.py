"""How fast pictures are drawn: ``python benchmarks/diffusion.py [--json]``, against diffusers' own dual-guided pipeline, in one process.

Same weights, device and number format; ratios are medians over alternating pairs, so that what else the machine does weighs on both.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers_dual import DualGuided, dual_unet, pictures, pipeline, set_mix
from torch.utils.flop_counter import FlopCounterMode

from havir_explorer import pipeline as house
from havir_explorer.batch import run_many
from havir_explorer.cli.show import quiet
from havir_explorer.data import open_dataset
from havir_explorer.diffuse import weights
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.sampler import generate
from havir_explorer.diffuse.versatile import Conditions, VersatileUNet
from havir_explorer.records import Decoded, FloatArray, Mask, Request, Scheduler, Settings, UInt8Array

THEIRS = Settings(seed=0, steps=50, strength=1.0, guidance=7.5, mix=0.4, scheduler="ddim")
"""diffusers' default: DDIM, 50 steps from pure noise, guidance 7.5."""
OURS = replace(THEIRS, scheduler=Settings().scheduler, steps=Settings().steps)
"""The same with our default solver and count of steps."""
REFERENCE_STEPS = 250
REFERENCES: tuple[Scheduler, ...] = ("ddim", "dpmsolver++")
"""Solvers of the 250-step reference: diffusers' own first-order one, whose error its 50 steps share in part, and one of second order."""
PUBLISHED: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""``image_unet/config.json`` of the published checkpoint, where it differs from diffusers' defaults (method 2.1)."""
UNMEASURED = "not yet measured"
NO_GPU = f"{UNMEASURED}: no GPU here"
Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a value and its target, or why there is none."""

    name: str
    value: float | None
    target: str
    met: bool | None
    how: str

    @classmethod
    def ratio(cls, name: str, value: float, target: float, how: str, *, most: bool = False) -> Row:
        """A ratio that should be ``target`` at least, or at most."""
        return cls(name, value, f"{'≤' if most else '≥'} {target}", value <= target if most else value >= target, how)


@dataclass(frozen=True, eq=False)
class Scene:
    """What everything is drawn from: conditions decoded from the test images of the teaching world, and noise (n, 4, h, w)."""

    model: VersatileDiffusion
    decoded: Decoded
    noise: FloatArray

    def first(self, count: int) -> Scene:
        """The first rows alone."""
        some = Decoded(self.decoded.latents[:count], self.decoded.image_embeds[:count], self.decoded.text_embeds[:count])
        return Scene(self.model, some, self.noise[:count])

    def ours(self, settings: Settings) -> UInt8Array:
        """Pictures drawn by this package."""
        drawn = generate(self.model, self.decoded, [settings] * len(self.noise), noise=self.noise)
        return self.model.decode_latents(drawn.latents)

    def theirs(self, found: DualGuided, steps: int) -> UInt8Array:
        """Pictures drawn by diffusers' pipeline."""
        given = (self.decoded.image_embeds, self.decoded.text_embeds, self.noise)
        image, text, noise = (torch.from_numpy(value).to(self.model.device, self.model.dtype) for value in given)
        without = (self.model.empty_image, self.model.empty_text)
        drawn = pictures(found, without, image, text, noise, THEIRS.mix, THEIRS.guidance, steps)
        return np.asarray(drawn * 255).round().astype(np.uint8)


def scene(model: VersatileDiffusion, count: int) -> Scene:
    """The first ``count`` test images of subj01."""
    dataset, decoder, _ = house.models(Request())
    table = dataset.trials("subj01")
    trials = table[table["shared"]].drop_duplicates("nsd_id").index[:count]
    decoded = decoder.decode(np.concatenate([house.measured(dataset, Request(trial=int(trial))) for trial in trials]))
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)])
    return Scene(model, decoded, noise.numpy())


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int, clock: Clock) -> tuple[float, float, float]:
    """Median seconds of both and median ratio of the first to the second, one after the other in turns, both warm."""
    times = [(timed(first, clock), timed(second, clock)) for _ in range(pairs)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), statistics.median(a / b for a, b in times)


def timed(work: Callable[[], object], clock: Clock) -> float:
    """Seconds that ``work`` takes, the device's part included."""
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def same_steps(one: Scene, found: DualGuided, pairs: int, clock: Clock, name: str = "(a) same scheduler, 50 steps") -> Row:
    """(a): DDIM, 50 steps, one picture; the pictures are the same, which is checked."""
    apart = np.abs(one.ours(THEIRS).astype(int) - one.theirs(found, THEIRS.steps)).max()
    theirs, ours, ratio = paired(lambda: one.theirs(found, THEIRS.steps), lambda: one.ours(THEIRS), pairs, clock)
    return Row.ratio(name, ratio, 1.5, f"diffusers {theirs:.2f} s, ours {ours:.2f} s a picture; pictures differ by {apart} of 255 at most")


def equal_quality(many: Scene, found: DualGuided, default: UInt8Array, pairs: int, clock: Clock, solver: Scheduler) -> list[Row]:
    """(b): our default against diffusers', whose distance from a 250-step reference is the most that ours may have."""
    one, reference = many.first(1), many.ours(replace(THEIRS, scheduler=solver, steps=REFERENCE_STEPS))
    bar, reached = quality(many, default, reference), quality(many, many.ours(OURS), reference)
    enough = reached[0] >= bar[0] and reached[1] >= bar[1]
    theirs, ours, ratio = paired(lambda: one.theirs(found, THEIRS.steps), lambda: one.ours(OURS), pairs, clock)
    named = f"{OURS.scheduler} {OURS.steps}"
    return [
        Row(f"(b) equal quality, to {solver} {REFERENCE_STEPS}", ratio, "≥ 4", enough and ratio >= 4, f"diffusers {theirs:.2f} s, ours {ours:.2f} s a picture"),
        Row(f"    diffusers, {THEIRS.scheduler} {THEIRS.steps}", bar[0], "", None, f"dB, {len(many.noise)} requests; CLIP cosine {bar[1]:.4f}"),
        Row(f"    ours, {named}", reached[0], f"≥ {bar[0]:.2f}", enough, f"dB; CLIP cosine {reached[1]:.4f}, wanted {bar[1]:.4f}"),
    ]


def by_quality(many: Scene, found: DualGuided, pairs: int, clock: Clock) -> list[Row]:
    """(b) against each reference."""
    default = many.theirs(found, THEIRS.steps)
    return [row for solver in REFERENCES for row in equal_quality(many, found, default, pairs, clock, solver)]


def quality(many: Scene, drawn: UInt8Array, reference: UInt8Array) -> tuple[float, float]:
    """Mean PSNR in dB and mean cosine of CLIP features to the reference pictures."""
    error = np.square((drawn.astype(np.float64) - reference) / 255).mean(axis=(1, 2, 3))
    features = many.model.image_features(drawn) * many.model.image_features(reference)
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-10)))), float(features.sum(-1).mean())


def lesions(count: int = 24) -> list[Request]:
    """One request for each of ``count`` silenced ROIs."""
    atlas = open_dataset("demo").atlas("subj01")
    names = list(dict.fromkeys(roi.name for roi in atlas.rois if roi.voxels.any()))
    sided = [f"{side}.{name}" for name in names for side in ("lh", "rh")]
    return [Request(mask=Mask(mute=(name,))) for name in (*names, *sided)[:count]]


def grid(pairs: int, clock: Clock) -> Row:
    """(c): 24 ROI lesions at the app's settings, scores included, together against one by one."""
    requests = lesions()
    house.run(requests[0])  # loads what both need
    together, apart, ratio = paired(lambda: run_many(requests), lambda: [house.run(request) for request in requests], pairs, clock)
    most = 0.35 if house.models(requests[0])[2].device.type == "cuda" else 0.5
    return Row.ratio("(c) grid of 24 lesions", ratio, most, f"together {together:.1f} s, one by one {apart:.1f} s", most=True)


def peak_share(step: Callable[[], object], device: str, dtype: torch.dtype, clock: Clock) -> Row:
    """(d): floating-point operations of a step over its time, over those of a large matrix product."""
    side = 8192
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    with FlopCounterMode(display=False) as counter:
        step()
    spent, product = (min(timed(work, clock) for _ in range(20)) for work in (step, lambda: matrix @ matrix))
    share = counter.get_total_flops() / spent / (2 * side**3 / product)
    return Row.ratio("(d) share of the matrix peak", share, 0.5, f"a guided step of one picture in {dtype}: {spent * 1e3:.1f} ms")


def published(pairs: int, clock: Clock) -> list[Row]:
    """(a) and (d) with random weights of the published size on a GPU; without one, the seconds of one guided step on the CPU."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    unet = random_unet(device, dtype)
    image, text, latents = (torch.randn(2, *shape, device=device, dtype=dtype) for shape in ((257, 768), (77, 768), unet_shape(unet)))
    mix = torch.full((1,), 0.4, device=device)
    with torch.inference_mode():
        theirs = dual_unet(unet)
        unet.settle()
        known = unet.read(Conditions(image[1:], text[1:], mix)).below(unet.read(Conditions(image[:1], text[:1], mix)), 1)
        step = partial(unet.denoise, latents[:1], unet.embed(torch.tensor(500, device=device)), known)
        if device == "cpu":
            how = f"{NO_GPU}; one guided step on the CPU in float32: {timed(step, clock):.1f} s"
            return [Row("(a) published size, a guided step", None, "≥ 1.5", None, how)]
        set_mix(theirs, 0.4)
        plain = partial(theirs, latents[:1].repeat(2, 1, 1, 1), 500, torch.cat([text, image], dim=1))
        timed(plain, clock), timed(step, clock)
        slow, fast, ratio = paired(plain, step, pairs * 4, clock)
        how = f"diffusers {slow * 1e3:.1f} ms, ours {fast * 1e3:.1f} ms in bfloat16"
        return [Row.ratio("(a) published size, a guided step", ratio, 1.5, how), peak_share(step, device, dtype, clock)]


def random_unet(device: str, dtype: torch.dtype) -> VersatileUNet:
    """A denoiser of the published size with small random weights, made where it is used."""
    with torch.device("meta"):
        unet = VersatileUNet(PUBLISHED)
    unet = unet.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.normal_(0, 0.02)
    return unet


def unet_shape(unet: VersatileUNet) -> tuple[int, int, int]:
    """(channels, h, w) of its latents."""
    return unet.unet.config.in_channels, unet.unet.config.sample_size, unet.unet.config.sample_size


def memory() -> list[Row]:
    """(e): peak memory of a process that draws one picture, weights and libraries included."""
    found = {}
    for who in ("ours", "theirs"):
        said = subprocess.run([sys.executable, __file__, "--alone", who], check=True, capture_output=True, text=True).stdout
        found[who] = float(said.split()[-1])
    return [Row("(e) peak memory", found["ours"], f"≤ {found['theirs']:.0f}", found["ours"] <= found["theirs"], "MiB, one picture; the target is diffusers'")]


def alone(who: str) -> None:
    """Draw one picture and print this process's peak memory in MiB."""
    model = weights.load()
    rng = np.random.default_rng(0)
    shapes = (model.latent_shape, model.empty_image.shape[1:], model.empty_text.shape[1:])
    latents, image, text, noise = (rng.standard_normal((1, *shape), dtype=np.float32) for shape in (*shapes, shapes[0]))
    some = Scene(model, Decoded(latents, image, text), noise)
    _ = some.ours(replace(THEIRS, steps=3)) if who == "ours" else some.theirs(pipeline(model), 3)
    print(peak())


def peak() -> float:
    """Peak memory of this process in MiB; Linux's resource usage would count what its parent held when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def demo_picture(one: Scene, pairs: int, clock: Clock) -> Row:
    """One picture at the app's settings, from decoded conditions to uint8."""
    seconds = statistics.median(timed(lambda: one.ours(Settings()), clock) for _ in range(pairs + 2))
    return Row.ratio("demo picture, s", seconds, 1.0, f"default settings, {torch.get_num_threads()} threads", most=True)


def compiled(one: Scene, found: DualGuided, pairs: int, clock: Clock) -> Row:
    """(a) with the steps compiled by torch."""
    fresh = Scene(weights.load(device=one.model.device, dtype=one.model.dtype), one.decoded, one.noise)
    fresh.model.unet.settle()
    fresh.model.unet.compile_steps()
    return same_steps(fresh, found, pairs, clock, "(a) the same, ours compiled")


def measure(parts: Sequence[str], pairs: int, requests: int, clock: Clock) -> list[Row]:
    """The rows of the table that were asked for."""
    generator = house.models(Request())[2]
    many, found = scene(generator, requests), pipeline(weights.load(device=generator.device, dtype=generator.dtype))
    one, rows = many.first(1), []
    work: dict[str, Callable[[], list[Row]]] = {
        "a": lambda: [same_steps(one, found, pairs, clock), demo_picture(one, pairs, clock)],
        "compiled": lambda: [compiled(one, found, pairs, clock)],
        "b": lambda: by_quality(many, found, pairs, clock),
        "c": lambda: [grid(min(pairs, 2), clock)],
        "d": lambda: published(pairs, clock) if torch.cuda.is_available() else [Row("(d) share of the matrix peak", None, "≥ 0.5", None, NO_GPU)],
        "published": lambda: published(pairs, clock),
        "e": memory,
    }
    for part in parts:
        rows += work[part]()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time the drawing of pictures against diffusers' dual-guided pipeline.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--parts", default="a,b,c,d,e", help="some of a, compiled, b, c, d, e, published (5 GB: one step of the full size)")
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs a ratio")
    parser.add_argument("--requests", type=int, default=32, help="pictures whose quality is compared")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall time, for a machine that others use too (one thread)")
    parser.add_argument("--alone", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.alone:
        alone(options.alone)
        return
    rows = measure(options.parts.split(","), options.pairs, options.requests, time.process_time if options.cpu_time else time.perf_counter)
    if options.json:
        print(json.dumps({"machine": machine(), "clock": "cpu" if options.cpu_time else "wall", "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print(machine())
    print(f"{'what':<40}{'value':>9}{'target':>10}  {'met':<5}how")
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.3f}"
        print(f"{row.name:<40}{value:>9}{row.target:>10}  {'–' if row.met is None else 'yes' if row.met else 'NO':<5}{row.how}")


def machine() -> str:
    """The machine in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{device}, Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}"


if __name__ == "__main__":
    main()
