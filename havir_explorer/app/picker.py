"""Who saw what: the subject, and the trial by its picture."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
import pandas as pd

from havir_explorer.app.style import data_uri, words
from havir_explorer.app.world import World

PER_PAGE = 21
_THUMB = 48


class Picker:
    """Subject menu, pages of stimulus thumbnails, and what is known of the chosen trial.

    Parameters
    ----------
    world : World
    scope : str
        CSS class of the app, so that two apps in one notebook do not paint each other's thumbnails.
    on_subject, on_trial, on_repeats : callable
        Called with what the user chose.
    """

    def __init__(self, world: World, scope: str, on_subject: Callable[[str], None], on_trial: Callable[[int], None], on_repeats: Callable[[str], None]) -> None:
        self._world, self._scope = world, scope
        self._on_subject, self._on_trial, self._on_repeats = on_subject, on_trial, on_repeats
        self._table = pd.DataFrame()
        self._page = 0
        self._quiet = False
        wide = widgets.Layout(width="100%")
        style = {"description_width": "84px"}
        self.subject = widgets.Dropdown(description="Subject", options=[], layout=wide, style=style)
        self.repeats = widgets.Dropdown(
            description="Response", options=[("mean of all repeats", "mean"), ("this trial alone", "single")], layout=wide, style=style
        )
        self.number = widgets.BoundedIntText(description="Trial", min=0, max=10**6, layout=wide, style=style, continuous_update=False)
        self.thumbs = tuple(self._thumb(i) for i in range(PER_PAGE))
        self.previous = widgets.Button(description="‹", tooltip="Previous pictures")
        self.next = widgets.Button(description="›", tooltip="More pictures")
        self._where, self._about, self._paint = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self.subject.observe(self._chose_subject, names="value")
        self.repeats.observe(lambda change: None if self._quiet else self._on_repeats(change["new"]), names="value")
        self.number.observe(lambda change: None if self._quiet else self._on_trial(int(change["new"])), names="value")
        self._paint.add_class("havir-style")
        grid, pager = widgets.Box(self.thumbs), widgets.HBox([self.previous, self._where, self.next])
        grid.add_class("havir-thumbs")
        pager.add_class("havir-pager")
        self.widget = widgets.VBox([self.subject, grid, pager, self.number, self.repeats, self._about, self._paint])
        self.widget.add_class("havir-section")

    def show(self, subject: str, trial: int, repeats: str) -> None:
        """Show a choice, without calling back."""
        self._quiet = True
        try:
            self.subject.options = self._world.open().subjects()
            self.subject.value, self.repeats.value = subject, repeats
            self._table = self._world.shared(subject)
            self.number.max = int(self._world.trials(subject).index.max())
            self.number.value = trial
        finally:
            self._quiet = False
        self._to_page_of(trial)
        self._describe(subject, trial)

    def _thumb(self, place: int) -> widgets.Button:
        button = widgets.Button()
        button.add_class("havir-thumb")
        button.add_class(f"havir-thumb-{place}")
        button.on_click(lambda _: self._chose_thumb(place))
        return button

    def _chose_thumb(self, place: int) -> None:
        at = self._page * PER_PAGE + place
        if at < len(self._table):
            self._on_trial(int(self._table.index[at]))

    def _chose_subject(self, change: dict[str, str]) -> None:
        if not self._quiet and change["new"] is not None:
            self._on_subject(change["new"])

    def _place(self, trial: int) -> int | None:
        ids = self._world.trials(self.subject.value)["nsd_id"]
        found = (self._table["nsd_id"] == ids.loc[trial]).to_numpy().nonzero()[0]
        return int(found[0]) if len(found) else None

    def _to_page_of(self, trial: int) -> None:
        place = self._place(trial)
        self._draw_page(self._page if place is None else place // PER_PAGE)

    def _turn(self, by: int) -> None:
        self._draw_page((self._page + by) % self._pages)

    @property
    def _pages(self) -> int:
        return max(1, -(-len(self._table) // PER_PAGE))

    def _draw_page(self, page: int) -> None:
        self._page = min(page, self._pages - 1)
        rows = self._table.iloc[self._page * PER_PAGE : (self._page + 1) * PER_PAGE]
        pictures = self._world.pictures([int(i) for i in rows["nsd_id"]])
        rules = [f".{self._scope} .havir-thumb-{i} {{ background-image: url({data_uri(picture, _THUMB)}); }}" for i, picture in enumerate(pictures)]
        self._paint.value = f"<style>{''.join(rules)}</style>"
        chosen = self._place(self.number.value)
        for i, button in enumerate(self.thumbs):
            used = i < len(rows)
            (button.remove_class if used else button.add_class)("empty")
            text = f"Trial {rows.index[i]}, picture {rows['nsd_id'].iloc[i]}" if used else ""
            button.description, button.tooltip = text, text
            (button.add_class if used and chosen == self._page * PER_PAGE + i else button.remove_class)("chosen")
        first, kind = self._page * PER_PAGE + 1, "shared test pictures" if bool(self._table["shared"].all()) else "pictures"
        self._where.value = f"<small>{first}–{first + len(rows) - 1} of {len(self._table)} {kind}</small>"

    def _describe(self, subject: str, trial: int) -> None:
        row = self._world.trials(subject).loc[trial]
        seen = "shared test picture, never trained on" if row["shared"] else "from the training set"
        captions = self._world.open().captions(int(row["nsd_id"]))
        caption = f"<br>“{words(captions[0])}”" if captions else ""
        self._about.value = (
            f"<small>Session {row['session']}, NSD {row['nsd_id']}, COCO {row['coco_id']}: {seen}, presentation "
            f"{int(row['repeat']) + 1} of {row['n_repeats']}.{caption}</small>"
        )
