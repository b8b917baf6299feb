"""The app's state: a request, whose cortex is shown, and what came of it, as traits that check themselves."""

from __future__ import annotations

import operator
from dataclasses import fields, replace
from typing import Any, get_args

import traitlets

from havir_explorer import masks
from havir_explorer.app.world import World
from havir_explorer.records import Branch, Convention, Mask, Reconstruction, Repeats, Request, Scheduler, Settings

SETTINGS = tuple(f.name for f in fields(Settings))


class _Whole(traitlets.Int[int, int | Any]):
    """An integer trait that takes NumPy's integers too."""

    def validate(self, obj: Any, value: Any) -> int:  # noqa: ANN401 - traitlets' own signature
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            self.error(obj, value)
        return int(super().validate(obj, operator.index(value)))


class State(traitlets.HasTraits):
    """Traits of :class:`~havir_explorer.app.explorer.Explorer`; a value out of range is refused with a HavirError."""

    _world: World
    _base: Request

    dataset = traitlets.Unicode("demo", read_only=True)
    subject = traitlets.Unicode()
    trial = _Whole()
    repeats: traitlets.TraitType[Repeats, Repeats] = traitlets.Enum(("mean", "single"), "mean")
    mask = traitlets.Instance(Mask, ())
    seed = _Whole(Settings.seed)
    steps = _Whole(Settings.steps)
    strength = traitlets.Float(Settings.strength)
    guidance = traitlets.Float(Settings.guidance)
    mix = traitlets.Float(Settings.mix)
    scheduler: traitlets.TraitType[Scheduler, Scheduler] = traitlets.Enum(get_args(Scheduler), Settings.scheduler)
    guidance_start = traitlets.Float(Settings.guidance_start)
    guidance_stop = traitlets.Float(Settings.guidance_stop)
    convention: traitlets.TraitType[Convention, Convention] = traitlets.Enum(get_args(Convention), Settings.convention)
    branch: traitlets.TraitType[Branch, Branch] = traitlets.Enum(("structural", "semantic"), "structural")
    status = traitlets.Unicode("idle", read_only=True)
    baseline = traitlets.Instance(Reconstruction, allow_none=True, read_only=True)
    ablated = traitlets.Instance(Reconstruction, allow_none=True, read_only=True)
    result = traitlets.Instance(Reconstruction, allow_none=True, read_only=True)
    error = traitlets.Unicode("")

    @property
    def request(self) -> Request:
        """The request as the traits stand, mask included."""
        settings = Settings(**{name: getattr(self, name) for name in SETTINGS})
        return replace(self._base, subject=self.subject, trial=self.trial, repeats=self.repeats, mask=self.mask, settings=settings)

    @traitlets.default("subject")
    def _first_subject(self) -> str:
        return self._world.open().subjects()[0]

    @traitlets.default("trial")
    def _first_shared_trial(self) -> int:
        return int(self._world.shared(self.subject).index[0])

    @traitlets.validate("subject")
    def _check_subject(self, proposal: dict[str, Any]) -> str:
        self._world.check_subject(proposal["value"])
        return str(proposal["value"])

    @traitlets.validate("trial")
    def _check_trial(self, proposal: dict[str, Any]) -> int:
        self._world.check_trial(self.subject, proposal["value"])
        return int(proposal["value"])

    @traitlets.validate("mask")
    def _check_mask(self, proposal: dict[str, Any]) -> Mask:
        mask: Mask = proposal["value"]
        if not mask.is_empty:
            masks.gains(mask, self._world.atlas(self.subject))
        if mask.fill == "trial":
            self._world.check_trial(self.subject, mask.fill_trial)
        return mask

    @traitlets.validate(*SETTINGS)
    def _check_setting(self, proposal: dict[str, Any]) -> float:
        replace(Settings(), **{proposal["trait"].name: proposal["value"]})
        value: float = proposal["value"]
        return value

    def adopt(self, request: Request) -> None:
        """Take over a request, its data set excepted."""
        self.subject = request.subject
        self.trial, self.repeats, self.mask = request.trial, request.repeats, request.mask
        for name in SETTINGS:
            setattr(self, name, getattr(request.settings, name))
