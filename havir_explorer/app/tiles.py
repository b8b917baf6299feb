"""Stimulus, full brain and masked brain side by side, each saying what it is, with scores and their chance level beneath."""

from __future__ import annotations

import ipywidgets as widgets

from havir_explorer.app.still import mask_words
from havir_explorer.app.style import badge, img, words
from havir_explorer.records import Reconstruction, Score, Step, UInt8Array

STAGES = {
    "wait": "waiting for another reconstruction to finish",
    "load": "loading the models",
    "decode": "decoding the voxels",
    "diffuse": "drawing",
    "measure": "scoring",
}
TITLES = ("Stimulus", "Full brain", "Masked")


class Tiles:
    """Three tiles and one table.

    Pictures are enlarged smoothly by the browser: at 64 pixels hard edges would read as detail that is not there.
    """

    def __init__(self) -> None:
        self.tiles = tuple(widgets.HTML() for _ in TITLES)
        self.scores = widgets.HTML()
        self._results: list[Reconstruction | None] = [None, None]
        row = widgets.Box(self.tiles)
        row.add_class("havir-three")
        self.widget = widgets.VBox([row, self.scores])
        self.widget.add_class("havir-section")
        self.clear("")

    def stimulus(self, picture: UInt8Array, *, synthetic: bool, about: str) -> None:
        """Show what the subject saw."""
        label = "synthetic stimulus" if synthetic else "measured"
        self._draw(0, img(picture, f"Stimulus: {about}", side=min(picture.shape[0], 256)), badge(label), words(about))

    def clear(self, reason: str, *, masked: bool = False) -> None:
        """Take both reconstructions away and say why there is none."""
        self._results = [None, None]
        self._empty(0, reason or "Press Reconstruct")
        self._empty(1, "Press Reconstruct" if masked else "Mute or solo an ROI to compare")
        self._score()

    def preview(self, place: int, step: Step) -> None:
        """Show the predicted picture so far; the last finished picture stays until the first preview."""
        if step.preview is not None:
            at = f"step {step.index} of {step.count}"
            self._draw(place + 1, img(step.preview, f"{TITLES[place + 1]}: preview, {at}"), badge("preview"), at)

    def finished(self, place: int, result: Reconstruction, *, cached: bool) -> None:
        """Show one picture of a job that goes on."""
        self._results = [result, None] if place == 0 else [self._results[0], result]
        self._finished(place, result, "", mask_words(result.request.mask) if place else "", cached=cached)
        self._score()

    def results(
        self, full: Reconstruction | None, masked: Reconstruction | None, *, stale: str = "", mask: str = "", cached: tuple[bool, bool] = (False, False)
    ) -> None:
        """Show what is finished; ``stale`` says, where not empty, that the pictures answer another question than the panel now asks."""
        self._results = [full, masked]
        for place, result in enumerate(self._results):
            if result is not None:
                self._finished(place, result, stale, mask if place else "", cached=cached[place])
            elif place:
                self._empty(1, "Press Reconstruct" if mask else "Mute or solo an ROI to compare")
            else:
                self._empty(0, "Press Reconstruct")
        self._score()

    def _finished(self, place: int, result: Reconstruction, stale: str, mask: str, *, cached: bool) -> None:
        badges = badge(result.kind) + (badge("synthetic") if result.synthetic else "")
        seen = [badge("seen in training", loud=True)] if result.trained_on else []
        settings = result.request.settings
        about = f"seed {settings.seed}, {result.steps_run} of {settings.steps} steps{', remembered' if cached else ''}"
        parts = [words(stale or about), *([words(mask)] if mask and not stale else []), *seen]
        alt = f"{TITLES[place + 1]}: {result.kind} picture, {about}"
        self._draw(place + 1, img(result.picture, alt), badges, "<br>".join(parts), stale=bool(stale))

    def _empty(self, place: int, text: str) -> None:
        self._draw(place + 1, f"<span>{words(text)}</span>", "", "")

    def _draw(self, place: int, inside: str, badges: str, below: str, *, stale: bool = False) -> None:
        self.tiles[place].value = (
            f'<figure class="havir-tile{" stale" if stale else ""}"><div class="top"><span class="title">{TITLES[place]}</span>'
            f'<span class="badges">{badges}</span></div><div class="frame">{inside}</div><figcaption class="below">{below}</figcaption></figure>'
        )

    def _score(self) -> None:
        full, masked = ({s.name: s for s in r.scores} if r else {} for r in self._results)
        names = list(dict.fromkeys([*full, *masked])) or ["PixCorr", "SSIM", "CLIP", "CLIP-cos"]
        lines = [_line(name, full.get(name), masked.get(name)) for name in names]
        self.scores.value = (
            '<table class="havir-table scores"><thead><tr><th scope="col">Score</th><th scope="col">Chance</th>'
            f'<th scope="col">Full brain</th><th scope="col">Masked</th><th scope="col">Change</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
        )


def _line(name: str, full: Score | None, masked: Score | None) -> str:
    known = full or masked
    arrow = "" if known is None else " ↑" if known.higher_is_better else " ↓"
    chance = "–" if known is None or known.chance is None else f"{known.chance:.2f}"
    change = f"{round(masked.value - full.value, 2) or 0.0:+.2f}".replace("-", "−") if full and masked else "–"
    title = f' title="{words(known.protocol)}"' if known else ""
    cells = [chance, *(f"{s.value:.2f}".replace("-", "−") if s else "–" for s in (full, masked)), change]
    return f"<tr><td{title}>{words(name)}{arrow}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
