"""Reconstruct and Cancel, how far the run is, and what went wrong, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import ipywidgets as widgets

from havir_explorer.app.style import words
from havir_explorer.app.tiles import STAGES, TITLES
from havir_explorer.jobs import Event
from havir_explorer.records import Reconstruction


class RunPanel:
    """Buttons, progress bar, status line and message area.

    Parameters
    ----------
    on_run, on_cancel : callable
    """

    def __init__(self, on_run: Callable[[], object], on_cancel: Callable[[], object]) -> None:
        self.run = widgets.Button(description="Reconstruct", button_style="primary", tooltip="Draw the picture for this trial, mask and settings")
        self.cancel = widgets.Button(description="Cancel", tooltip="Stop within one step", disabled=True)
        self.bar = widgets.FloatProgress(min=0, max=1, bar_style="info")
        self.status, self.message = widgets.HTML(), widgets.HTML()
        self.run.on_click(lambda _: on_run())
        self.cancel.on_click(lambda _: on_cancel())
        buttons = widgets.HBox([self.run, self.cancel])
        buttons.add_class("havir-run")
        self.bar.add_class("havir-bar")
        self.status.add_class("havir-status")
        self.widget = widgets.VBox([buttons, self.bar, self.status, self.message])
        self.widget.add_class("havir-section")
        self._began, self._held = 0.0, 0.0
        self.say("Ready.")

    def say(self, text: str, fraction: float | None = None) -> None:
        """Write the status line; the bar shows ``fraction`` of 1 and hides where there is none."""
        self.status.value = f'<div role="status" aria-live="polite">{words(text)}</div>'
        self.bar.layout.visibility = "hidden" if fraction is None else "visible"
        self.bar.value = fraction or 0.0

    def complain(self, text: str) -> None:
        """Show what went wrong, or nothing."""
        self.message.value = f'<div class="havir-error" role="alert">{words(text)}</div>' if text else ""

    def busy(self, *, busy: bool) -> None:
        """Let Cancel be pressed while there is something to cancel."""
        self.cancel.disabled = not busy

    def follow(self, event: Event) -> None:
        """Show how far a job is."""
        if event.state == "queued":
            self._began, self._held = time.monotonic(), 0.0
            self.say("Waiting for the run before to stop.", 0.0)
        elif event.state == "cancelling":
            self.say("Cancelling: stops within one step.", self.bar.value)
        elif event.step is not None and event.step.stage == "wait":
            self._held = time.monotonic()
            self.say(f"{STAGES['wait'].capitalize()}.", event.index / event.count)
        elif event.step is not None:
            self._go_on()
            fraction = _fraction(event)
            self.say(f"{_stage(event)}{self._left(event, fraction)}", fraction)
        elif event.state == "running" and event.result is None:
            self.say("Starting.", 0.0)

    def end(self, event: Event, results: Sequence[Reconstruction | None]) -> None:
        """Say how a job ended."""
        spent = time.monotonic() - self._began
        drawn = [r for r in results if r is not None]
        texts = {
            "done": f"Done: {len(drawn)} picture{'s' if len(drawn) != 1 else ''} in {spent:.1f} s.",
            "cancelled": "Cancelled: nothing of that run was kept.",
            "failed": "Failed: see the message below.",
        }
        self.say(texts[event.state])

    def _go_on(self) -> None:
        """Leave the time that others had the device out of the account."""
        if self._held:
            self._began += time.monotonic() - self._held
            self._held = 0.0

    def _left(self, event: Event, fraction: float) -> str:
        spent = time.monotonic() - self._began
        if event.step is None or event.step.index < 2 or fraction <= 0:
            return ""
        left = spent * (1 - fraction) / fraction
        return f", about {max(1, round(left))} s left"


def _stage(event: Event) -> str:
    step = event.step
    if step is None:
        return ""
    which = f" ({TITLES[event.index + 1].lower()}, {event.index + 1} of {event.count})" if event.count > 1 else ""
    done = f" {step.index} of {step.count}" if step.count else ""
    return f"{STAGES.get(step.stage, step.stage).capitalize()}{done}{which}"


def _fraction(event: Event) -> float:
    step = event.step
    if step is None:
        return 0.0
    within = {"load": 0.02, "decode": 0.06, "measure": 0.95}.get(step.stage, 0.08)
    if step.count:
        within = 0.08 + 0.85 * step.index / step.count
    return (event.index + within) / event.count
