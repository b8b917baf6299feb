"""Where a generator runs and in which number format: chosen from what the machine has, or as told."""

from __future__ import annotations

import os

import torch

from havir_explorer.errors import RequestError

DEVICE, DTYPE = "HAVIR_DEVICE", "HAVIR_DTYPE"
"""Environment variables that override the choice, e.g. ``cuda:1`` and ``float32``."""

DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
}


def present() -> tuple[str, ...]:
    """Return the devices of this machine, the fastest first: ``cuda:0`` and so on, ``mps``, and always ``cpu``."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return (*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu")


def device(asked: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, else that of ``HAVIR_DEVICE``, else the fastest there is.

    Raises
    ------
    RequestError
        This machine does not have it; the sentence names what it has.
    """
    by = "was asked for" if asked else f"was asked for by {DEVICE}"
    name = str(asked or os.environ.get(DEVICE) or present()[0])
    there = present()
    if name not in there and name not in {known.partition(":")[0] for known in there}:
        msg = f"device {name!r} {by}, but this machine has {', '.join(there)}; choose one of these, or none to have it chosen"
        raise RequestError(msg)
    return torch.device(name)


def dtype(asked: str | torch.dtype | None = None) -> torch.dtype:
    """Return the number format asked for, else that of ``HAVIR_DTYPE``, else float32, which gives the same picture on every device.

    Raises
    ------
    RequestError
        It is not one of float32, float16 and bfloat16.
    """
    name = str(asked or os.environ.get(DTYPE) or "float32").removeprefix("torch.")
    if name not in DTYPES:
        msg = f"number format {name!r} is not one a generator runs in; choose float32, float16 or bfloat16"
        raise RequestError(msg)
    return DTYPES[name]
