"""How the picture is drawn: seed, strength, mix, guidance and steps, each with what it does."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import ipywidgets as widgets

from havir_explorer.records import Settings

_LARGEST_SEED = 2**32 - 1
_HELP = {
    "strength": "0: the decoded layout; 1: pure noise",
    "mix": "0: image embedding; 1: text embedding",
    "guidance": "how hard the embeddings pull; 1 is off",
    "steps": "of the full schedule; more is finer, slower",
}


class SettingsPanel:
    """Seed and sliders.

    Parameters
    ----------
    on_settings : callable
        Called with a setting's name and its new value when the user changed it.
    """

    def __init__(self, on_settings: Callable[[str, float], None]) -> None:
        self._on_settings = on_settings
        self._quiet = False
        style = {"description_width": "84px"}
        wide = widgets.Layout(width="100%")
        share = {"min": 0.0, "max": 1.0, "step": 0.05, "readout_format": ".2f"}
        shared = {"continuous_update": False, "layout": wide, "style": style}
        self.seed = widgets.BoundedIntText(description="Seed", min=0, max=_LARGEST_SEED, layout=widgets.Layout(flex="1 1 auto", width="auto"), style=style)
        self.reroll = widgets.Button(description="Re-roll", tooltip="Draw another seed", layout=widgets.Layout(width="76px"))
        self.strength = widgets.FloatSlider(description="Strength", **share, **shared)
        self.mix = widgets.FloatSlider(description="Text mix", **share, **shared)
        self.guidance = widgets.FloatSlider(description="Guidance", min=1.0, max=15.0, step=0.5, readout_format=".1f", **shared)
        self.steps = widgets.IntSlider(description="Steps", min=1, max=100, **shared)
        self.reset = widgets.Button(description="Reset", tooltip="Back to the defaults", layout=widgets.Layout(width="76px"))
        self.fields = {"seed": self.seed, "strength": self.strength, "mix": self.mix, "guidance": self.guidance, "steps": self.steps}
        self._readout = widgets.HTML()
        for name, field in self.fields.items():
            field.observe(lambda change, name=name: self._chose(name, change["new"]), names="value")
            field.add_class("havir-slider")
        self.reroll.on_click(lambda _: self._on_settings("seed", secrets.randbelow(100_000)))
        self.reset.on_click(lambda _: self._to_defaults())
        self.widget = widgets.VBox(self._lines())
        self.widget.add_class("havir-section")

    def show(self, settings: Settings) -> None:
        """Show settings, without calling back."""
        self._quiet = True
        try:
            self.steps.max = max(self.steps.max, settings.steps)
            self.guidance.max = max(self.guidance.max, settings.guidance)
            for name, field in self.fields.items():
                field.value = getattr(settings, name)
            run = int(settings.steps * settings.strength)
            rest = "the decoded latents are shown as they are" if run == 0 else "the decoded latents are ignored" if settings.strength == 1 else ""
            self._readout.value = f"<small><b>{run} of {settings.steps}</b> steps will run{'; ' + rest if rest else ''}</small>"
        finally:
            self._quiet = False

    def _lines(self) -> list[widgets.Widget]:
        head = widgets.HBox([widgets.HTML("<h3>Drawing</h3>"), self.reset], layout=widgets.Layout(justify_content="space-between"))
        lines: list[widgets.Widget] = [head, widgets.HBox([self.seed, self.reroll])]
        for name in ("strength", "mix", "guidance", "steps"):
            about = widgets.HTML(f"<small>{_HELP[name]}</small>")
            about.add_class("havir-help")
            lines += [self.fields[name], about]
        return [*lines, self._readout]

    def _chose(self, name: str, value: float) -> None:
        if not self._quiet:
            self._on_settings(name, value)

    def _to_defaults(self) -> None:
        for name in self.fields:
            if name != "seed":  # the seed is kept: it is what makes two pictures comparable
                self._on_settings(name, getattr(Settings(), name))
