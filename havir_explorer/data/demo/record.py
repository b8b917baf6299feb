"""The written record of the small Versatile Diffusion's training, and its contact sheet."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from havir_explorer.data.demo import scenes
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.sampler import generate
from havir_explorer.records import Decoded, Settings, UInt8Array

FIRST_HELD_OUT = 200_000
"""Scenes from this number on were in no training of the generator."""

SHEET = 64
_TILE = 128


def contact_sheet(model: VersatileDiffusion, settings: Settings) -> tuple[UInt8Array, list[str]]:
    """Draw 64 held-out scenes from noise, uncurated: the upper four rows from their captions alone, the lower four from their image embeddings alone.

    Returns
    -------
    uint8 (1024, 1024, 3), list of str
        The sheet and, in reading order, the captions of all 64 scenes.
    """
    held_out = [scenes.scene(n) for n in range(FIRST_HELD_OUT, FIRST_HELD_OUT + SHEET)]
    captions = [scenes.captions(s)[0] for s in held_out]
    pictures = np.stack([scenes.draw(s, model.side) for s in held_out])
    decoded = Decoded(np.zeros((SHEET, *model.latent_shape), np.float32), model.embed_images(pictures), model.embed_texts(captions))
    asked = [Settings(seed=n, steps=settings.steps, strength=1.0, guidance=settings.guidance, mix=float(n < SHEET // 2)) for n in range(SHEET)]
    drawn = model.decode_latents(generate(model, decoded, asked).latents)
    tiles = [np.asarray(Image.fromarray(p).resize((_TILE, _TILE), Image.Resampling.BICUBIC)) for p in drawn]
    rows = [np.concatenate(tiles[start : start + 8], axis=1) for start in range(0, SHEET, 8)]
    return np.concatenate(rows, axis=0), captions


def psnr(model: VersatileDiffusion, count: int = 256) -> float:
    """Return the autoencoder's mean peak signal-to-noise ratio in dB on held-out scenes."""
    pictures = np.stack([scenes.draw(scenes.scene(n), model.side) for n in range(FIRST_HELD_OUT, FIRST_HELD_OUT + count)])
    redrawn = model.decode_latents(model.encode_latents(pictures))
    error = ((pictures.astype(np.float64) - redrawn) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255.0**2 / error)).mean())


def retrieval(model: VersatileDiffusion, count: int = 100) -> float:
    """Return how often a held-out caption's nearest picture of ``count`` is its own (CLIP top-1)."""
    held_out = [scenes.scene(n) for n in range(FIRST_HELD_OUT, FIRST_HELD_OUT + count)]
    images = model.image_features(np.stack([scenes.draw(s, model.side) for s in held_out]))
    texts = model.text_features([scenes.captions(s)[0] for s in held_out])
    return float((np.argmax(texts @ images.T, axis=1) == np.arange(count)).mean())


def write(model: VersatileDiffusion, work: Path, folder: Path) -> None:
    """Write ``record.json`` and ``contact_sheet.png`` into ``folder`` from the logs in ``work``."""
    settings = Settings(steps=50)
    sheet, captions = contact_sheet(model, settings)
    Image.fromarray(sheet).save(folder / "contact_sheet.png", optimize=True)
    file = folder / "record.json"
    before = json.loads(file.read_text())["stages"] if file.exists() else {}
    record = {
        "written": datetime.now(UTC).strftime("%Y-%m-%d"),
        "stages": {stage: _runs(before.get(stage, []), work / stage / "log.jsonl") for stage in ("vae", "clip", "flows")},
        "held_out": {"first_scene": FIRST_HELD_OUT, "autoencoder_psnr_db": round(psnr(model), 2), "clip_top1_of_100": round(retrieval(model), 3)},
        "contact_sheet": {
            "settings": {"steps": settings.steps, "guidance": settings.guidance, "strength": 1.0},
            "rows_1_to_4": "captions alone",
            "rows_5_to_8": "image embeddings alone",
            "captions": captions,
        },
    }
    file.write_text(json.dumps(record, indent=2) + "\n")


def _runs(before: list[dict[str, object]], log: Path) -> list[dict[str, object]]:
    """Return a stage's runs, the one in ``log`` added, or put in the place of its own earlier part."""
    if not log.exists():
        return before
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    pieces = [a["seconds"] for a, b in zip(lines, [*lines[1:], {"seconds": 0.0}], strict=True) if b["seconds"] <= a["seconds"]]
    run = {
        "began": lines[0].get("began", ""),
        "device": lines[0]["device"],
        "batch": lines[0]["batch"],
        "torch": torch.__version__,
        "steps": lines[-1]["step"],
        "wall_seconds": round(sum(pieces)),
        "resumed": len(pieces) - 1,
        "losses": [[line["step"], line["loss"]] for line in lines][:: max(1, len(lines) // 12)],
    }
    return [*(earlier for earlier in before if earlier["began"] != run["began"]), run]
