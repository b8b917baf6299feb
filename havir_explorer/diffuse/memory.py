"""How many pictures fit into a device's memory, and what is said when they do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.errors import DeviceOutOfMemory, is_shortage

Notice = Callable[[str], None]
"""Called with a sentence about something that went wrong without spoiling a result."""

_LARGEST, _LARGEST_CPU = 32, 8
"""Beyond this many pictures a batch is no faster, and its first result comes late; a CPU's caches hold few."""
_WORKING = 40
"""Peak of a denoising step, in copies of its widest feature maps at full resolution: skips, both flows' gated layers, keys and values."""
_PAINTING = 5
"""Peak of decoding a picture, in float32 copies of the autoencoder's feature maps at full resolution."""
_SPARED = 0.5
"""Share of the free memory that is left to others and to what the estimate does not know."""


def fitting(model: VersatileDiffusion, wanted: int) -> int:
    """Return how many of ``wanted`` pictures to denoise at once: 1 at least, :func:`largest` at most."""
    return max(1, min(wanted, largest(model.device.type), int(free(model.device) * (1 - _SPARED) / picture_bytes(model))))


def largest(device: str) -> int:
    """Return how many pictures at most are worth denoising at once on a device, ``"cpu"`` or another."""
    return _LARGEST_CPU if device == "cpu" else _LARGEST


def picture_bytes(model: VersatileDiffusion) -> int:
    """Return about how many bytes one picture needs beside the weights: the larger of its guided denoising step and its decoding."""
    _, height, width = model.latent_shape
    size = torch.finfo(model.dtype).bits // 8
    denoising = _WORKING * 2 * int(model.unet.unet.config.block_out_channels[0]) * height * width * size
    decoding = _PAINTING * 2 * int(model.vae.config.block_out_channels[0]) * model.side**2 * 4
    return max(denoising, decoding)


def free(device: torch.device) -> int:
    """Return the memory in bytes that tensors may take on the device; for the CPU what the system calls available."""
    if device.type == "cuda":  # what torch holds back from earlier tensors is ours to use, though the device calls it taken
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 if hasattr(os, "sysconf") else 2**31


_Done = TypeVar("_Done")


def in_batches(count: int, size: int, work: Callable[[range], _Done], on_notice: Notice | None = None) -> Iterator[tuple[range, _Done]]:
    """Work through ``count`` places, ``size`` at once, and half as many from then on whenever memory runs out.

    Parameters
    ----------
    count, size : int
        ``size`` is 1 or more.
    work : callable
        Called with some of the places, in order.
    on_notice : callable, optional
        Told in a sentence that fewer are done at once.

    Yields
    ------
    places, done
        As each batch finishes.

    Raises
    ------
    DeviceOutOfMemory
        Not even one fits.
    """
    places = range(count)
    while places:
        some = places[:size]
        try:
            done = work(some)
        except DeviceOutOfMemory:
            if len(some) == 1:
                raise
            size = len(some) // 2
            if on_notice is not None:
                on_notice(f"memory ran out; going on with {size} picture{'s' * (size > 1)} at once")
            continue
        yield some, done
        places = places[size:]


@contextmanager
def enough(device: torch.device, pictures: int) -> Iterator[None]:
    """Say in words that memory ran out while ``pictures`` were worked on together.

    Raises
    ------
    DeviceOutOfMemory
        With what to lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not is_shortage(fault):
            raise
        advice = "ask for fewer at once" if pictures > 1 else "end what else uses it, load the model in float16 or bfloat16, or use a smaller model"
        count = f"{pictures} pictures at once do" if pictures > 1 else "one picture does"
        msg = f"{count} not fit into the memory of the {device.type} ({free(device) / 2**30:.1f} GiB free): {advice}"
        raise DeviceOutOfMemory(msg) from fault
