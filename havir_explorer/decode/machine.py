"""What a training runs on: a device, a number format, and how many processes share the work; by accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, reduce
from torch import Tensor, nn

from havir_explorer.decode.options import Precision
from havir_explorer.errors import DeviceOutOfMemory, RequestError, is_shortage

_PATIENCE = timedelta(days=7)
"""How long processes wait for each other: one may encode all stimuli meanwhile, and torch's own limit is ten minutes on GPUs."""


class Machine:
    """One process's share of the devices.

    Started by ``accelerate launch`` (or torchrun), as many processes as were launched share each batch, one GPU each; otherwise there is one.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; of several processes each takes its own GPU unless this is ``cpu``.
    precision : {'no', 'bf16', 'fp16'}
        Number format of products and convolutions; weights stay float32.
    subjects : int
        How many share a trunk: a step leaves the input layers of all but one alone.

    Raises
    ------
    RequestError
        The device has no such number format.
    DeviceOutOfMemory
        By :meth:`room`.
    """

    def __init__(self, device: str = "cpu", precision: Precision = "no", *, subjects: int = 1) -> None:
        asked = torch.device(device)
        if asked.type != "cuda" and precision == "fp16":
            msg = f"precision fp16 needs a CUDA GPU, but training runs on {device}; choose bf16 or no"
            raise RequestError(msg)
        if asked.type == "cuda" and asked.index is not None:
            torch.cuda.set_device(asked)
        if _processes(device).num_processes == 1:  # accelerate's state is the process's: without this a second training here would get the first one's
            AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - it offers no other way
        every = DistributedDataParallelKwargs(find_unused_parameters=subjects > 1)
        try:
            self._accelerator = Accelerator(cpu=asked.type == "cpu", mixed_precision=precision, device_placement=False, kwargs_handlers=[every])
        except ValueError as fault:
            msg = f"{device} cannot train in precision {precision} ({fault}); choose another --precision"
            raise RequestError(msg) from fault
        self.device = self._accelerator.device if self.count > 1 else asked

    @property
    def count(self) -> int:
        """How many processes train together."""
        return self._accelerator.num_processes

    def __str__(self) -> str:
        return f"{self.count} x {self.device.type}" if self.count > 1 else str(self.device)

    @property
    def rank(self) -> int:
        """Which of them this is; 0 writes the files."""
        return self._accelerator.process_index

    def prepare(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a module, already on :attr:`device`, and its optimiser as mixed precision and several processes need them."""
        ready: tuple[nn.Module, torch.optim.Optimizer] = self._accelerator.prepare(module, optimiser)
        return ready

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients, scaled where the number format needs it."""
        self._accelerator.backward(loss)

    @contextmanager
    def alone(self, module: nn.Module, *, yes: bool) -> Iterator[None]:
        """Leave gradients unshared between processes (all but the last part of a batch)."""
        if not yes or self.count == 1:
            yield
            return
        with self._accelerator.no_sync(module):
            yield

    def agreed(self, value: float) -> float:
        """Return process 0's value, so that all decide alike."""
        if self.count == 1:
            return value
        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.device)))

    def mean(self, value: float) -> float:
        """Return the mean of all processes' values."""
        if self.count == 1:
            return value
        return float(reduce(torch.tensor(value, dtype=torch.float64, device=self.device), "mean"))

    @contextmanager
    def room(self, what: str) -> Iterator[None]:
        """Say in a sentence that the device has no memory for ``what``.

        Raises
        ------
        DeviceOutOfMemory
            It has not.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as fault:
            if not is_shortage(fault):
                raise
            msg = f"{what} does not fit into the memory of {self.device}: choose smaller sizes, end what else uses it, or take a device with more"
            raise DeviceOutOfMemory(msg) from fault

    def wait(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()

    def release(self) -> None:
        """Let go of what was prepared, so that its memory is free for the next."""
        self._accelerator.free_memory()

    @property
    def scaler(self) -> Any:  # noqa: ANN401 - torch's scalers share no public class
        """The gradients' scaler of fp16; None without one."""
        return self._accelerator.scaler


@contextmanager
def main_process_first(device: str) -> Iterator[None]:
    """Let process 0 do something before the others do it, such as making what they then only read."""
    with _processes(device).main_process_first():
        yield


def leads(device: str) -> bool:
    """Whether this is the process that reports for all."""
    return bool(_processes(device).is_main_process)


def _processes(device: str) -> PartialState:
    return PartialState(cpu=torch.device(device).type == "cpu", timeout=_PATIENCE)
