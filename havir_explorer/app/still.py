"""The finished result as one PNG that stays in the cell: it needs no kernel, no widget and no network."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from havir_explorer.records import Mask, Reconstruction, UInt8Array

_TILE, _GAP, _TOP, _BOTTOM, _MARGIN = 208, 16, 48, 100, 16
_INK, _SOFT, _PAPER = (33, 33, 33), (97, 97, 97), (255, 255, 255)


def still(full: Reconstruction, masked: Reconstruction | None) -> bytes:
    """Draw stimulus, full and masked reconstruction with labels and scores.

    Returns
    -------
    bytes
        PNG.
    """
    origin = "synthetic" if full.synthetic else "measured"
    tiles = [("Stimulus", origin, full.stimulus, ""), ("Full brain", _label(full), full.picture, _scores(full))]
    if masked is not None:
        tiles.append(("Masked", _label(masked), masked.picture, _scores(masked)))
    width = max(2 * _MARGIN + len(tiles) * _TILE + (len(tiles) - 1) * _GAP, 2 * _MARGIN + 3 * _TILE + 2 * _GAP)
    sheet = Image.new("RGB", (width, _TOP + _TILE + _BOTTOM), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (title, label, picture, scores) in enumerate(tiles):
        x = _MARGIN + place * (_TILE + _GAP)
        pen.text((x, 12), title, _INK, ImageFont.load_default(15))
        pen.text((x, 29), label, _SOFT, ImageFont.load_default(11))
        sheet.paste(_enlarged(picture), (x, _TOP))
        pen.multiline_text((x, _TOP + _TILE + 6), scores, _INK, ImageFont.load_default(11), spacing=3)
    pen.text((_MARGIN, sheet.height - 20), recipe_line(masked or full), _SOFT, ImageFont.load_default(11))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def recipe_line(result: Reconstruction) -> str:
    """Return the request in one line of words."""
    r, s = result.request, result.request.settings
    repeats = "mean of repeats" if r.repeats == "mean" else "single trial"
    words = f"{r.subject}, trial {r.trial} ({repeats}), {mask_words(r.mask)}; seed {s.seed}, {result.steps_run} of {s.steps} steps, "
    return f"{words}strength {s.strength:g}, text mix {s.mix:g}, guidance {s.guidance:g}"


def mask_words(mask: Mask) -> str:
    """Return a mask in a few words."""
    if mask.is_empty:
        return "no mask"
    parts = [f"muted {_list(mask.mute)}"] * bool(mask.mute) + [f"only {_list(mask.keep)}"] * bool(mask.keep)
    parts += [", ".join(f"{n} x {g:g}" for n, g in mask.gains)] * bool(mask.gains)
    return "; ".join(parts)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _label(result: Reconstruction) -> str:
    return result.kind + (", synthetic data" if result.synthetic else "") + (", seen in training" if result.trained_on else "")


def _scores(result: Reconstruction) -> str:
    return "\n".join(f"{s.name} {s.value:.2f}" + (f"  (chance {s.chance:.2f})" if s.chance is not None else "") for s in result.scores)


def _enlarged(picture: UInt8Array) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture)).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
