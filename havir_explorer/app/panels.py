"""The app's panels in one layout, and what each shows of a request and its results."""

from __future__ import annotations

from typing import Protocol

import ipywidgets as widgets

from havir_explorer.app.branch_panel import BranchPanel
from havir_explorer.app.keys import Keys
from havir_explorer.app.mask_panel import MaskPanel, shared
from havir_explorer.app.picker import Picker
from havir_explorer.app.run_panel import RunPanel
from havir_explorer.app.settings_panel import SettingsPanel
from havir_explorer.app.still import mask_words
from havir_explorer.app.style import CSS, badge, words
from havir_explorer.app.tiles import Tiles
from havir_explorer.app.world import World
from havir_explorer.records import Branch, Reconstruction, Request


class Asked(Protocol):
    """What the panels tell the app."""

    def ask(self, name: str, value: object) -> None:
        """A control was moved."""

    def ask_run(self) -> None:
        """Reconstruct was pressed."""

    def ask_cancel(self) -> None:
        """Cancel was pressed."""


class Panels:
    """Every panel, laid out.

    Parameters
    ----------
    world : World
    scope : str
        CSS class that only this app carries.
    app : Asked
        Told what the user does.
    """

    def __init__(self, world: World, scope: str, app: Asked) -> None:
        self._world = world
        self._shown_subject = ""
        self.picker = Picker(world, scope, lambda v: app.ask("subject", v), lambda v: app.ask("trial", v), lambda v: app.ask("repeats", v))
        self.mask = MaskPanel(lambda v: app.ask("mask", v))
        self.settings = SettingsPanel(app.ask)
        self.run = RunPanel(app.ask_run, app.ask_cancel)
        self.keys = Keys(scope, app.ask_run, app.ask_cancel)
        self.tiles = Tiles()
        self.branch = BranchPanel(lambda v: app.ask("branch", v))
        style, self._head = widgets.HTML(f"<style>{CSS}</style>"), widgets.HTML()
        style.add_class("havir-style")
        self._head.add_class("havir-head")
        left = widgets.VBox([self.picker.widget, self.run.widget, self.mask.widget, self.settings.widget])
        right = widgets.VBox([self.tiles.widget, self.branch.widget])
        body = widgets.Box([left, right])
        for part, name in ((left, "havir-left"), (right, "havir-right"), (body, "havir-body")):
            part.add_class(name)
        self.children = (style, self._head, body)
        self._title("")

    def show(self, request: Request, branch: Branch) -> None:
        """Show a request in every control, without calling back."""
        if request.subject != self._shown_subject:
            atlas = self._world.atlas(request.subject)
            self.mask.populate(atlas, self._world.split(request.subject))
            self._shown_subject = request.subject
        self.picker.show(request.subject, request.trial, request.repeats)
        self.mask.show(request.mask)
        self.settings.show(request.settings)
        self.branch.show(branch)
        self.branch.say(self.mask.reach())
        dataset = self._world.open()
        self._title(badge("synthetic teaching world", loud=True) if dataset.synthetic else badge(dataset.name))
        nsd_id = int(self._world.trials(request.subject).loc[request.trial, "nsd_id"])
        about = f"{request.subject}, trial {request.trial}, picture {nsd_id}"
        self.tiles.stimulus(self._world.picture(nsd_id), synthetic=dataset.synthetic, about=about)

    def results(self, request: Request, full: Reconstruction | None, masked: Reconstruction | None, cached: tuple[bool, bool]) -> None:
        """Show results beside a request; those that answer another one are dimmed or, where the trial differs, taken away."""
        same = [r for r in (full, masked) if r is not None and _same_trial(r.request, request)]
        if full is None or full not in same:
            self.tiles.clear("", masked=not request.mask.is_empty)
            return
        stale = "" if _answers(request, full, masked) else "Drawn with other settings: press Reconstruct"
        self.tiles.results(full, masked, stale=stale, mask="" if request.mask.is_empty else mask_words(request.mask), cached=cached)

    def paint(self, request: Request, branch: Branch) -> None:
        """Paint the cortex for a branch; the first time loads the decoder."""
        atlas, surface = self._world.atlas(request.subject), self._world.surface(request.subject)
        fed = self._world.fed(request, branch)
        if request.subject == self._shown_subject:  # another may have been chosen while the decoder was loaded
            self.mask.read_by(self._world.split(request.subject))
            self.branch.say(self.mask.reach())
        self.branch.set_rois(request.subject, atlas, surface)
        self.branch.paint(branch, fed, shared=shared(self._world.split(request.subject)))

    def _title(self, badges: str) -> None:
        self._head.value = (
            '<div class="havir-head-row"><h3>havir_explorer</h3><span class="soft">what a brain response looks like, '
            f"and which cortex made it</span>{badges or words('')}</div>"
        )


def _same_trial(a: Request, b: Request) -> bool:
    return (a.dataset, a.subject, a.trial, a.repeats) == (b.dataset, b.subject, b.trial, b.repeats)


def _answers(request: Request, full: Reconstruction, masked: Reconstruction | None) -> bool:
    if full.request.settings != request.settings:
        return False
    return request.mask.is_empty if masked is None else masked.request == request
