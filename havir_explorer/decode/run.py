"""One branch's training, which can be stopped at any step and taken up again to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from havir_explorer.decode import chance, curve, mixco
from havir_explorer.decode.blocks import use_generator
from havir_explorer.decode.branches import CHUNK
from havir_explorer.decode.cost import Pace
from havir_explorer.decode.curve import Board, Point
from havir_explorer.decode.files import whole
from havir_explorer.decode.machine import Machine
from havir_explorer.decode.options import Options
from havir_explorer.decode.pairs import Draw, Learner, Lesson, draw
from havir_explorer.errors import DeviceOutOfMemory, TrainingDiverged, WeightsInvalid, is_shortage
from havir_explorer.records import Branch

Progress = Callable[[float, str], None]
Notice = Callable[[str], None]
"""Called with a sentence about what does not stop the training but should be known."""
_DRAWS, _NOISE, _MIXING = 1, 2, 3
_LEAST_SCALE = 2.0**-14
"""Of fp16's gradients, which begin at 2¹⁶: thirty steps in a row were left out."""


def checkpoint(folder: Path, branch: Branch) -> Path:
    """Return the file that a branch's training is taken up from."""
    return folder / f"checkpoint-{branch}.pt"


def one_cycle(share: float) -> float:
    """Return the factor of the peak learning rate at a share of the run: cosine up over the first tenth, cosine down to 1/1000."""
    rising = share < 0.1
    within = share / 0.1 if rising else (share - 0.1) / 0.9
    low = 0.04 if rising else 0.001
    wave = (1 - math.cos(math.pi * within)) / 2
    return low + (1 - low) * (wave if rising else 1 - wave)


@dataclass(frozen=True)
class Plan:
    """How long a run is and what decides its chances.

    Parameters
    ----------
    options : Options
    steps : int
    seed : int
    identity : str
        Equal where a checkpoint may be taken up.
    resume : bool
        Take the folder's checkpoint up when there is one.
    tensorboard : bool
        Write the curve for TensorBoard too.
    """

    options: Options
    steps: int
    seed: int
    identity: str
    resume: bool = True
    tensorboard: bool = False


@dataclass
class _State:
    """What a checkpoint holds besides weights and optimiser."""

    done: int = 0
    parts: int = 1
    summed: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    seconds: float = 0.0


class Run:
    """The state of a run, and how it moves on.

    A step draws one of the lesson's subjects, pictures of its, and a mixture of their repeats; the draws and the dropout are functions of the
    seed, the branch and the step alone. Several processes show a part of each batch each.

    Parameters
    ----------
    lesson : Lesson
    learner : Learner
        On the machine's device. Parameters that need no gradient (a frozen trunk) stay as they are.
    plan : Plan
    machine : Machine
    """

    def __init__(self, lesson: Lesson, learner: Learner, plan: Plan, machine: Machine) -> None:
        self.lesson, self.learner, self.plan, self.machine = lesson, learner, plan, machine
        self.noise = torch.Generator(machine.device)
        use_generator(learner, self.noise)
        self.module, self.optimiser = machine.prepare(learner, _optimiser(learner, plan.options))
        self.state, self.points = _State(), list[Point]()
        self.best: dict[str, Tensor] = {}
        self.board: Board | None = None

    @property
    def branch(self) -> Branch:
        """Which branch is trained."""
        return self.lesson.objective.branch

    @property
    def over(self) -> bool:
        """Whether all steps are done, or none of the last checks has found a better loss."""
        state, options = self.state, self.plan.options
        idle = state.done - state.best_step
        return state.done >= self.plan.steps or (options.patience > 0 and idle >= options.patience * options.check_every)

    def loop(self, folder: Path, *, progress: Progress | None = None, notice: Notice | None = None) -> None:
        """Run to the end, from the folder's checkpoint when there is one that may be taken up; the best weights are then the learner's.

        Raises
        ------
        TrainingDiverged
            The loss or its gradient is not finite any more; the last checkpoint stays.
        DeviceOutOfMemory
            Not even one picture at a time fits, or the optimiser's step or a look at the held-out pictures does not.
        WeightsInvalid
            The checkpoint is of another run.
        OutputError
            A checkpoint cannot be written.
        """
        file, options = checkpoint(folder, self.branch), self.plan.options
        if self.plan.resume and file.exists():
            self._restore(file)
        if self.machine.rank == 0 and self.plan.tensorboard and not self.over:
            self.board = Board(folder, self.branch, self.state.done)
        pace, began = Pace(self.branch, options, notice), time.monotonic() - self.state.seconds
        while not self.over:
            loss = self._advance(notice)
            self.state.seconds = time.monotonic() - began
            if self.state.done % options.check_every == 0 or self.state.done == self.plan.steps:
                self._judge(folder)
            if self.state.done % options.save_every == 0 or self.over:
                self._store(file)
            pace.step(self.plan.steps - self.state.done)
            if progress:
                line = f"{self.branch} step {self.state.done} of {self.plan.steps}: loss {loss:.4f}; best held-out {self.state.best_loss:.4f}"
                progress(self.state.done / self.plan.steps, line)
        self.learner.load_state_dict(self.best)

    def _advance(self, notice: Notice | None) -> float:
        """Take a step, in as many parts as it takes to fit into memory."""
        batch, options = self.plan.options.batch, self.plan.options
        drawn = draw(self.lesson.pairs, batch, self.plan.seed, self.lesson.objective.number, self.state.done, _DRAWS)
        mine = drawn.part(torch.arange(self.machine.rank, batch, self.machine.count))
        while True:
            try:
                loss = self._gradients(mine)
                break
            except (RuntimeError, MemoryError) as fault:
                if not is_shortage(fault):
                    raise
                self._halve(len(mine.pictures), fault, notice)
        rate = self.lesson.objective.rate(options) * one_cycle(self.state.done / self.plan.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if not self._finite(loss):
            raise TrainingDiverged(self._accusation(loss, drawn))
        with self.machine.room(f"a step of the {self.branch} branch's optimiser"):
            self.optimiser.step()
        self.state.done += 1
        self.state.summed += loss
        return loss

    def _gradients(self, shown: Draw) -> float:
        """Leave the gradients of a batch in the parameters and return its loss, a part of the pictures after the other."""
        self.module.train()
        self.noise.manual_seed(chance.state(*self._here(_NOISE)))
        self.optimiser.zero_grad(set_to_none=True)
        total, parts = 0.0, torch.arange(len(shown.pictures)).chunk(self.state.parts)
        for index, places in enumerate(parts):
            part, last = shown.part(places), index == len(parts) - 1
            with self.machine.alone(self.module, yes=not last):
                loss = self._loss(part, index) * (len(places) / len(shown.pictures))
                self.machine.backward(loss)
            total += float(loss.detach())
        return total

    def _loss(self, shown: Draw, index: int) -> Tensor:
        device, options = self.machine.device, self.plan.options
        voxels = self.lesson.pairs[shown.subject].voxels(shown.weights, shown.pictures).to(device)
        mixes = self.lesson.objective.mixes and self.state.done < options.mixco * self.plan.steps
        mixing = mixco.draw(len(voxels), chance.generator(*self._here(_MIXING), index)) if mixes else None
        predicted = self.module(voxels if mixing is None else mixing.mix(voxels), shown.subject)
        return self.lesson.loss(predicted, shown.subject, shown.pictures, options, mixing)

    def _here(self, use: int) -> tuple[int, ...]:
        """Where random numbers are used that differ between processes."""
        return self.plan.seed, self.lesson.objective.number, self.state.done, use, self.machine.rank

    def _halve(self, pictures: int, fault: BaseException, notice: Notice | None) -> None:
        """Show half as many pictures at once from now on; gradients are summed, so the batch stays as large, but what is contrasted does not."""
        self.optimiser.zero_grad(set_to_none=True)
        at_once = math.ceil(pictures / self.state.parts)
        where = f"the memory of {self.machine.device}"
        if at_once == 1 or self.machine.count > 1:
            advice = "choose a smaller batch" if at_once > 1 else "choose smaller sizes, or a device with more"
            count = f"{at_once} pictures at once do" if at_once > 1 else "one picture at a time does"
            msg = f"{count} not fit into {where} in training the {self.branch} branch: {advice}"
            raise DeviceOutOfMemory(msg) from fault
        self.state.parts *= 2
        if self.machine.device.type == "cuda":
            torch.cuda.empty_cache()
        if notice:
            fewer = math.ceil(at_once / 2)
            contrast = f", though only {fewer} are contrasted with each other" if self.lesson.objective.mixes else ""
            notice(f"{at_once} pictures at once do not fit into {where}; going on with {fewer}, batches of {pictures} as before{contrast}")

    def _finite(self, loss: float) -> bool:
        """Whether a step leaves the weights finite: then every checkpoint is good."""
        if not math.isfinite(loss):
            return False
        if self.machine.scaler is not None:  # fp16's leaves out a step whose gradients overflow, and halves its scale: for ever where nothing helps
            return float(self.machine.scaler.get_scale()) > _LEAST_SCALE
        return bool(torch.nn.utils.get_total_norm([p.grad for p in self.learner.parameters() if p.grad is not None]).isfinite())

    def _accusation(self, loss: float, shown: Draw) -> str:
        """Say what is not finite, at which step and with which pictures, and what to do."""
        pairs = self.lesson.pairs[shown.subject]
        target = self.lesson.targets(shown.subject, shown.pictures, torch.device("cpu"))
        pictures = [int(n) for n in pairs.nsd_ids(shown.pictures)]
        what = "its loss is not finite" if not math.isfinite(loss) else f"its loss is {loss:.4g} but the gradient is not finite"
        where = f"the {self.branch} branch of {pairs.samples.subject} stopped at step {self.state.done + 1}: {what}"
        sources = {
            "responses to": (pairs.voxels(shown.weights, shown.pictures), "look at the beta files they came from, or leave their sessions out"),
            "targets of": (torch.cat([values.flatten(1) for values in target], 1), "make them anew"),
        }
        for name, (values, advice) in sources.items():
            wrong = [n for n, fine in zip(pictures, values.isfinite().all(1).tolist(), strict=True) if not fine]
            if wrong:
                return f"{where}, because the {name} nsd_id {_listed(wrong)} hold values that are not finite; {advice}. The last checkpoint is kept."
        rate = self.lesson.objective.rate(self.plan.options)
        advice = f"train again with --restart and a lower rate than {rate:g}, or without mixed precision"
        return f"{where}. It was shown nsd_id {_listed(pictures)}, whose responses and targets are finite: {advice}. The last checkpoint is kept."

    def _judge(self, folder: Path) -> None:
        """Look at the held-out pictures, keep the weights when they are the best so far, and draw the curve on."""
        state = self.state
        with self.machine.room(f"a look at the {self.branch} branch's held-out pictures"):
            loss = self.machine.agreed(self.held_out_loss())
        since = state.done - (self.points[-1].step if self.points else 0)
        self.points.append(Point(state.done, self.machine.mean(state.summed / since), loss, self.optimiser.param_groups[0]["lr"]))
        state.summed = 0.0
        if loss < state.best_loss:
            self.best = {}  # two copies of the weights would be 4 GB at the full size
            state.best_loss, state.best_step, self.best = loss, state.done, self._copy()
        if self.machine.rank == 0:
            curve.write(curve.curve(folder, self.branch), self.points)
        if self.board:
            self.board.add(self.points[-1])

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss on the held-out pictures' averaged repeats, over the subjects."""
        self.learner.eval()
        losses = []
        for subject, pairs in enumerate(self.lesson.pairs):
            summed = 0.0
            for pictures in pairs.held.split(CHUNK):
                predicted = self.learner(pairs.averaged(pictures).to(self.machine.device), subject)
                loss = float(self.lesson.loss(predicted, subject, pictures, self.plan.options))
                if not math.isfinite(loss):
                    raise TrainingDiverged(self._accusation(loss, Draw(subject, pictures, pairs.samples.means(pictures))))
                summed += loss * len(pictures)
            losses.append(summed / len(pairs.held))
        return sum(losses) / len(losses)

    def _copy(self) -> dict[str, Tensor]:
        """Copy the weights into the CPU's memory; what several subjects share is copied once."""
        copies: dict[int, Tensor] = {}
        state = self.learner.state_dict()
        return {name: copies.setdefault(value.data_ptr(), value.detach().to("cpu", copy=True)) for name, value in state.items()}

    def _store(self, file: Path) -> None:
        if self.machine.rank == 0:
            scaler = self.machine.scaler
            state = {
                "identity": self.plan.identity,
                "state": vars(self.state),
                "points": [tuple(point) for point in self.points],
                "weights": self.learner.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": scaler.state_dict() if scaler else {},
                "best": self.best,
            }
            with whole(file) as (part,):
                torch.save(state, part)
        self.machine.wait()

    def _restore(self, file: Path) -> None:
        state = _read(file)
        if state["identity"] != self.plan.identity:
            msg = f"the checkpoint {file} is of a run with other options, seed, steps or voxels; delete it, choose another folder, or train with --restart"
            raise WeightsInvalid(msg)
        self.learner.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.machine.scaler is not None:
            self.machine.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.state, self.points = _State(**state["state"]), [Point(*point) for point in state["points"]]


def _read(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu", mmap=True)  # noqa: TID251 - our own checkpoint; no pickled code is run
    except Exception as error:  # torch names no common class for a file that is not a checkpoint
        msg = f"the checkpoint {file} cannot be read ({error}); delete it, or train with --restart"
        raise WeightsInvalid(msg) from error
    return state


def _optimiser(module: nn.Module, options: Options) -> torch.optim.Optimizer:
    """AdamW that decays matrices and kernels and spares biases and norms; each parameter once, frozen ones not at all."""
    learned = [p for p in module.parameters() if p.requires_grad]
    decayed, spared = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim <= 1]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": options.weight_decay}, {"params": spared, "weight_decay": 0.0}])


def _listed(nsd_ids: list[int]) -> str:
    return ", ".join(str(n) for n in nsd_ids[:8]) + (f" and {len(nsd_ids) - 8} more" if len(nsd_ids) > 8 else "")


def checkpoint_bytes(folder: Path, branches: tuple[Branch, ...]) -> int:
    """Return how much room a folder's checkpoints take."""
    files = (checkpoint(folder, branch) for branch in branches)
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(folder: Path, branches: tuple[Branch, ...]) -> None:
    """Delete the checkpoints of branches whose weights are saved."""
    for branch in branches:
        with suppress(OSError):
            checkpoint(folder, branch).unlink(missing_ok=True)
