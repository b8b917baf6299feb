"""Which times are denoised and how a step is taken: diffusers' solvers, started where a strength says (method 2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from havir_explorer.diffuse.conventions import CONVENTIONS
from havir_explorer.errors import RequestError
from havir_explorer.records import Scheduler, Settings

SOLVERS: dict[Scheduler, Any] = {
    "ddim": DDIMScheduler,
    "unipc": UniPCMultistepScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "karras": DPMSolverMultistepScheduler,
}
_LAST = 3
"""Last time of the Karras schedule: of the thousand times those below it differ so little in noise that a step between them is lost."""
_RHO = 3
"""Exponent of the Karras schedule: the steps' errors are then about equal (their appendix D.1), and the whole error is less than with their 7."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of one request; it holds the solver's memory of earlier steps, so each call makes its own.

    Parameters
    ----------
    solver
        diffusers' scheduler, set to the full schedule and begun at ``first``.
    times : tuple of int
        The k times that are denoised, falling.
    first : int
        Index of the first of them among the N of the full schedule.
    alpha_bar : float
        Of the time to which the latents are noised: sqrt(alpha-bar) of their amplitude survives. 0 for pure noise, 1 for no step at all.
    """

    solver: Any
    times: tuple[int, ...]
    first: int
    alpha_bar: float

    def start(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return the noised latents, float32 (B, 4, h, w); of pure noise nothing is left of ``latents``."""
        return noise if self.alpha_bar == 0 else self.alpha_bar**0.5 * latents + (1 - self.alpha_bar) ** 0.5 * noise

    def step(self, predicted: Tensor, index: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents after step ``index`` (0-based of k) and the clean latents predicted on the way, both (B, 4, h, w)."""
        stepped = self.solver.step(predicted, self.times[index], latents)
        clean = getattr(stepped, "pred_original_sample", None)
        return stepped.prev_sample, self.solver.model_outputs[-1] if clean is None else clean  # the multi-step solvers keep it for the next step


def schedule(config: Mapping[str, Any], settings: Settings) -> Schedule:
    """Return the last ``int(N * strength)`` steps of a solver's full schedule.

    Parameters
    ----------
    config : mapping
        ``scheduler_config.json`` of the checkpoint.
    settings : Settings
        Its ``scheduler``, ``steps``, ``strength`` and ``convention``.

    Raises
    ------
    RequestError
        The solver has fewer times to offer than steps are asked for, or the first lies beyond the checkpoint's table.
    """
    first = settings.steps - min(int(settings.steps * settings.strength), settings.steps)
    solver = _karras(config, settings.steps, first) if settings.scheduler == "karras" else _even(config, settings)
    times = [int(time) for time in solver.timesteps]
    beyond = first < len(times) and times[_noised(first, settings)] >= len(solver.alphas_cumprod)  # DDIM counts from 1: 1000 steps of 1000 end outside
    if beyond or any(later >= earlier for earlier, later in pairwise(times)):
        msg = f"the scheduler {settings.scheduler} cannot tell {settings.steps} steps apart; ask for fewer, or for another scheduler"
        raise RequestError(msg)
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(first)
    return Schedule(solver, tuple(times[first:]), first, _alpha_bar(solver.alphas_cumprod, times, first, settings))


def _even(config: Mapping[str, Any], settings: Settings) -> Any:  # noqa: ANN401 - diffusers is not typed
    solver = SOLVERS[settings.scheduler].from_config(config)
    solver.set_timesteps(settings.steps)
    return solver


def _karras(config: Mapping[str, Any], steps: int, first: int) -> Any:  # noqa: ANN401 - as above
    """DPM-Solver++ of second order, even in the times before ``first``, from there on the noise levels of Karras et al. 2022 (equation 5).

    So a strength means the noise that it means to the other solvers. The last step ends where DDIM's does, at the table's first time.
    """
    solver = SOLVERS["karras"].from_config(config, final_sigmas_type="sigma_min")
    noise = np.sqrt((1 - solver.alphas_cumprod.double().numpy()) / solver.alphas_cumprod.double().numpy())
    top = len(noise) - 1
    even = [round(top * (steps - index) / steps) for index in range(first + 1)]
    high, low = noise[even[-1]] ** (1 / _RHO), noise[min(_LAST, even[-1])] ** (1 / _RHO)
    levels = np.linspace(high, low, steps - first) ** _RHO
    solver.set_timesteps(timesteps=[*even[:-1], *np.interp(levels, noise, np.arange(len(noise))).round().astype(int)])
    return solver


def _alpha_bar(table: Tensor, times: list[int], first: int, settings: Settings) -> float:
    if settings.strength == 1:
        return 0.0
    if first == len(times):
        return 1.0
    return float(table[times[_noised(first, settings)]].double())


def _noised(first: int, settings: Settings) -> int:
    return max(first - CONVENTIONS[settings.convention].lead, 0)
