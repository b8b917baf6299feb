"""``havir diffuse``: pictures of what any decoder has decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from PIL import Image

from havir_explorer.cli.options import JsonOption
from havir_explorer.cli.show import can_write, console, emit, make_folder, progress_bar, write
from havir_explorer.records import Convention, FloatArray, Scheduler, Settings, UInt8Array

_D = Settings()


def diffuse(
    *,
    weights: Annotated[str, typer.Option("--weights", help="Folder of a Versatile Diffusion, or 'demo'.")] = "demo",
    decoded: Annotated[Path, typer.Option("--decoded", help="NPZ with latents (B,4,h,w), image_embeds and text_embeds (B,tokens,width).")],
    out: Annotated[Path, typer.Option("--out", help="NPZ to write: latents (B,4,h,w) and pictures (B,H,W,3).")],
    png: Annotated[Path | None, typer.Option("--png", help="Folder to write each picture into as PNG.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every picture's noise, where the NPZ holds none.")] = _D.seed,
    steps: Annotated[int, typer.Option("--steps", help="Scheduler steps of the full schedule.")] = _D.steps,
    scheduler: Annotated[str, typer.Option("--scheduler", help=f"One of {', '.join(get_args(Scheduler))}.")] = _D.scheduler,
    strength: Annotated[float, typer.Option("--strength", help="0 decoded latents only, 1 pure noise.")] = _D.strength,
    guidance: Annotated[float, typer.Option("--guidance", help="Classifier-free guidance scale.")] = _D.guidance,
    guidance_start: Annotated[float, typer.Option("--guidance-start", help="Guide from this fraction of the steps.")] = _D.guidance_start,
    guidance_stop: Annotated[float, typer.Option("--guidance-stop", help="Guide up to this fraction of the steps.")] = _D.guidance_stop,
    mix: Annotated[float, typer.Option("--mix", help="0 image embedding only, 1 text embedding only.")] = _D.mix,
    convention: Annotated[str, typer.Option("--convention", help=f"Whose habits: {', '.join(get_args(Convention))}.")] = _D.convention,
    as_json: JsonOption = False,
) -> None:
    """Draw what any decoder has written: latents and embeddings."""
    whose: Any = {"scheduler": scheduler, "convention": convention}  # the record checks the names
    numbers = Settings(seed, steps, strength, guidance, mix, guidance_start=guidance_start, guidance_stop=guidance_stop, **whose)
    can_write(out, ".npz")
    if png is not None:
        make_folder(png, "--png")
    from havir_explorer.diffuse import device, exchange
    from havir_explorer.diffuse.weights import load

    given = exchange.read(decoded)
    if weights != "demo":  # which never takes long
        _announce(weights, numbers, len(given.decoded))
    model = load(weights, device=device.device(), dtype=device.dtype())
    with progress_bar(f"drawing {out.name}") as show:
        latents, pictures = exchange.draw(model, given, numbers, progress=show, on_notice=_notice)
    _save(out, png, latents=latents, pictures=pictures)
    if as_json:
        emit({"out": str(out), "png": png and str(png), "pictures": len(pictures), "shape": list(pictures.shape[1:])})
    else:
        console().print(f"wrote {len(pictures)} picture{'s' * (len(pictures) > 1)} to {out}{f' and {png}' if png else ''}")


def _save(out: Path, png: Path | None, latents: FloatArray, pictures: UInt8Array) -> None:
    write(out, lambda part: np.savez(part, latents=latents, pictures=pictures))
    if png is not None:
        for index, picture in enumerate(pictures):
            write(png / f"{index:04d}.png", Image.fromarray(picture).save)


def _announce(weights: str, numbers: Settings, count: int) -> None:
    """Say what one picture costs when the user is to wait for long."""
    from havir_explorer.diffuse import cost, device, source
    from havir_explorer.diffuse.parts import Place

    found = cost.estimate(source.locate(weights), numbers, Place(device.device(), device.dtype()))
    if found.seconds * count > cost.LONG:
        asked = f", {count} were asked for" if count > 1 else ""
        _notice(f"{found}{asked}; stop it with Ctrl-C, or lower it with fewer --steps, less --strength or --guidance 1")


def _notice(sentence: str) -> None:
    console(to_stderr=True).print(f"havir: {sentence}")
