"""The Explorer: one object whose traits are the app's whole state, so that setting one from Python equals clicking."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import ipywidgets as widgets
import traitlets
from IPython.display import display

from havir_explorer import store
from havir_explorer.app.pace import Pace
from havir_explorer.app.panels import Panels
from havir_explorer.app.state import SETTINGS, State
from havir_explorer.app.still import recipe_line, still
from havir_explorer.app.world import World
from havir_explorer.data.dataset import Dataset
from havir_explorer.errors import Cancelled, HavirError, RequestError
from havir_explorer.jobs import FINAL, Event, Job, Memory, Run, Worker
from havir_explorer.records import Mask, Reconstruction, Request, Settings

_log = logging.getLogger(__name__)
_PAINTING = threading.RLock()
"""One map at a time: the first makes the figure, and each loads its decoder."""


class Explorer(widgets.VBox, State):  # type: ignore[misc]  # ipywidgets ships no types
    """The app: choose a response and a mask, redraw what was seen, see which cortex made it.

    A bare ``app`` at the end of a cell shows it. Constructing it shows nothing and loads no weights.

    Parameters
    ----------
    dataset : str, Path or Dataset
        ``"demo"``, the folder of an NSD tree, or a data set that is open already.
    request : Request, optional
        Where to start; by default the first shared test picture of the first subject, without a mask.
    run : callable, optional
        Draws one request, in place of :func:`havir_explorer.pipeline.run`.
    memory : Store, optional
        Remembers results; by default in the cache folder.

    Attributes
    ----------
    subject, trial, repeats, mask, seed, steps, strength, guidance, mix, scheduler, guidance_start, guidance_stop, convention
        The request; see :class:`~havir_explorer.records.Request` for ranges. Setting one raises a HavirError where it is out of range.
    branch : {'structural', 'semantic'}
        Whose cortex is shown.
    status : str
        ``'idle'``, or the state of the latest job: queued, running, cancelling, cancelled, done or failed.
    baseline, ablated : Reconstruction or None
        The latest pictures of the whole brain and of the masked one, at the same seed.
    result : Reconstruction or None
        ``ablated`` where there is a mask, else ``baseline``.
    error : str
        What the app complains about, or nothing.
    """

    def __init__(self, dataset: str | Path | Dataset = "demo", *, request: Request | None = None, run: Run | None = None, memory: Memory | None = None) -> None:
        self._settled = False
        self._world = World(dataset)
        self._base = replace(request or Request(), dataset=self._world.name, mask=Mask(), settings=Settings())
        self._worker = Worker(run, store.Store() if memory is None else memory)
        self._panels: Panels | None = None
        self._scope = f"havir-{uuid.uuid4().hex[:8]}"
        self._job, self._pace = 0, Pace()
        self._fresh: list[Reconstruction | None] = [None, None]
        self._cached = (False, False)
        self._showing = threading.RLock()  # the page is refreshed from the kernel's thread, the worker's and the one that prepares
        self._stills: list[Any] = []
        super().__init__()
        self.add_class("havir")
        self.add_class(self._scope)
        self.set_trait("dataset", self._world.name)
        if request is not None:
            self.adopt(request)
        self._settled = True

    def __repr__(self) -> str:
        known = [f"{name}={self._trait_values[name]!r}" for name in ("dataset", "subject", "trial", "status") if name in self._trait_values]
        return f"Explorer({', '.join(known)})"

    @traitlets.observe("subject")
    def _other_subject(self, change: dict[str, Any]) -> None:
        if not self._settled:
            return
        self.cancel()  # the picture on its way belongs to another stimulus
        old, new = change["old"] or self._first_subject(), change["new"]
        self._settled = False  # one notification for the whole change, below
        try:
            self.trial = self._world.like(old, new, self.trial)
            self.mask = self._check_mask({"value": self.mask})
        except RequestError as error:  # of the mask: no such ROI, no voxel left, or no such trial to fill from
            self.mask = Mask()
            self.error = f"The mask was cleared, because it does not fit {new}: {error}"
        finally:
            self._settled = True
        self._refresh()
        self._attempt(self._paint)

    @traitlets.observe("trial", "repeats", "mask", *SETTINGS)
    def _other_request(self, change: dict[str, Any]) -> None:
        if not self._settled:
            return
        if change["name"] == "trial":
            self.cancel()  # the picture on its way belongs to another stimulus
        self._refresh()

    @traitlets.observe("branch")
    def _other_branch(self, _change: object) -> None:
        if self._panels is not None and self._world.is_open:
            self._panels.branch.show(self.branch)
            self._attempt(self._paint)

    @traitlets.observe("error")
    def _other_error(self, _change: object) -> None:
        if self._panels is not None:
            self._panels.run.complain(self.error)

    # Commands ----------------------------------------------------------------------------------------------------------------------

    def reconstruct(self) -> Job:
        """Draw the whole brain's picture and, where there is a mask, the masked one at the same seed, in the background.

        Returns
        -------
        Job
            Newest wins: a job that still runs is cancelled.
        """
        request = self.request
        self.error = ""
        requests = (request,) if request.mask.is_empty else (replace(request, mask=Mask()), request)
        return self._worker.submit(requests, self._on_event)

    def cancel(self) -> None:
        """Stop the job that runs, within one step; nothing happens where none does."""
        self._worker.cancel()

    def run(self) -> tuple[Reconstruction, ...]:
        """Reconstruct and wait: for scripts and for cells that need the pictures at once.

        Returns
        -------
        tuple of Reconstruction
            The whole brain's and, where there is a mask, the masked one.

        Raises
        ------
        HavirError
            What went wrong.
        Cancelled
            The run was cancelled meanwhile.
        """
        job = self.reconstruct()
        try:
            while not job.wait(0.2):  # short waits, so that an interrupt gets through
                pass
        except KeyboardInterrupt:
            job.cancel()
            raise
        if job.error is not None:
            raise job.error
        if job.state == "cancelled":
            msg = "the run was cancelled"
            raise Cancelled(msg)
        return job.results

    def save(self, path: Path | str) -> None:
        """Save the result as PNG with its recipe (name ending in ``.png``), or the request as it stands as JSON (``.json``).

        Raises
        ------
        OutputError
            It cannot be written there.
        RequestError
            Nothing was drawn yet.
        """
        if Path(path).suffix.lower() == ".json":
            store.write_recipe(self.request, path)
            return
        if self.result is None:
            msg = "there is no picture to save yet: reconstruct one first, or save the request to a .json file"
            raise RequestError(msg)
        store.write_png(self.result, path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return an Explorer set to the recipe in a PNG or JSON file; a remembered picture comes back at once when it is run."""
        request = store.read_recipe(path)
        return cls(request.dataset, request=request)

    def close(self) -> None:
        """Cancel what runs and take the app off the page."""
        self._worker.close()
        super().close()

    # The page ----------------------------------------------------------------------------------------------------------------------

    def ask(self, name: str, value: object) -> None:
        """Set a trait for a control that the user moved; a refusal is shown and the control goes back."""
        self.error = ""
        if not self._attempt(lambda: setattr(self, name, value)):
            self._refresh()

    def ask_run(self) -> None:
        """Reconstruct for the button."""
        self._attempt(self.reconstruct)

    def ask_cancel(self) -> None:
        """Cancel for the button."""
        self._attempt(self.cancel)

    def _ipython_display_(self) -> None:
        first = self._panels is None
        if first:
            self._panels = Panels(self._world, self._scope, self)
            self.children = self._panels.children
        display(self._repr_mimebundle_(), raw=True)
        handle = display(_still_bundle(self.baseline, self.ablated), raw=True, display_id=True)
        if handle is not None:  # None outside IPython
            self._stills.append(handle)
        if first:
            threading.Thread(target=self._prepare, name="havir-prepare", daemon=True).start()

    def _prepare(self) -> None:
        panels = self._panels
        if panels is not None and self._attempt(lambda: self._world.open(lambda done, what: panels.run.say(f"{what}.", done))):
            if self.status == "idle":
                panels.run.say(f"Ready: {expected}." if (expected := self._expected()) else "Ready.")
            self._refresh()
            self._attempt(self._paint)

    def _expected(self) -> str:
        """What a picture will cost, where it is worth saying before it begins; the demo's never is."""
        if self._base.generator == Request().generator:
            return ""
        from havir_explorer import pipeline

        try:
            cost = pipeline.cost(self.request)
        except HavirError:  # said when the run finds it too
            return ""
        return f"{cost}; Cancel stops it within one step" if cost.is_long else ""

    def _refresh(self) -> None:
        panels = self._panels
        if panels is not None and self._world.is_open:
            with self._showing:
                self._attempt(lambda: panels.show(self.request, self.branch))
                self._attempt(lambda: panels.results(self.request, self.baseline, self.ablated, self._cached))

    def _paint(self) -> None:
        if self._panels is not None:
            with _PAINTING:
                self._panels.paint(self.request, self.branch)

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Do something for a widget or a thread; what goes wrong is shown in the app, because an exception there reaches nobody."""
        try:
            action()
        except (HavirError, traitlets.TraitError) as error:
            self.error = str(error)
        except Exception as error:  # noqa: BLE001 - said in the app and in the log
            _log.exception("the app could not do what was asked")
            self.error = f"This is a fault of the app, not of your input ({type(error).__name__}: {error}); the log has the details."
        else:
            return True
        return False

    # News from the worker ----------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if event.state == "queued" and event.job > self._job:
            self._job, self._fresh = event.job, [None, None]
            self.error = self._expected()
        if event.job != self._job:
            return  # late news of a job that another one has replaced
        if event.step is not None and not self._pace.lets(event.step):
            return
        panels = self._panels
        if panels is not None:
            panels.run.busy(busy=event.state in ("queued", "running"))
            panels.run.follow(event)
            if event.step is not None:
                panels.tiles.preview(event.index, event.step)
        if event.notice:
            self.error = event.notice
        if event.result is not None:
            self._fresh[event.index] = event.result
            self._cached = (event.cached, self._cached[1]) if event.index == 0 else (self._cached[0], event.cached)
            if panels is not None:
                panels.tiles.finished(event.index, event.result, cached=event.cached)
        if event.state in FINAL:
            self._end(event)
        self.set_trait("status", event.state)

    def _end(self, event: Event) -> None:
        if event.state == "done":
            full, masked = self._fresh
            for name, value in (("baseline", full), ("ablated", masked), ("result", masked or full)):
                self.set_trait(name, value)
            self._attempt(self._leave_still)
        elif event.error is not None:
            self.error = str(event.error)
        if self._panels is not None:
            with self._showing:
                self._panels.results(self.request, self.baseline, self.ablated, self._cached)
            self._panels.run.end(event, self._fresh)

    def _leave_still(self) -> None:
        for handle in self._stills:
            handle.update(_still_bundle(self.baseline, self.ablated), raw=True)


def _still_bundle(full: Reconstruction | None, masked: Reconstruction | None) -> dict[str, Any]:
    """What stays in the cell without a kernel."""
    if full is None:
        return {"text/plain": "", "text/html": ""}
    return {"image/png": still(full, masked), "text/plain": f"Stimulus and reconstruction: {recipe_line(masked or full)}"}
