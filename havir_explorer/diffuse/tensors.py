"""Tensor files: what they hold without reading it, and some of it read with little memory; safetensors, and legacy .bin without unpickling code."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from havir_explorer.errors import WeightsInvalid, is_shortage

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64", "I32": "int32"}
_AT_ONCE = 256 * 2**20  # bytes read before the file is opened anew: pages of a mapped file count as memory until it is closed


class Kept(NamedTuple):
    """A tensor in a file: ``dtype`` as torch names it, ``shape``, and its size there."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def contents(file: Path) -> dict[str, Kept]:
    """Return what a file holds, by name, without reading the numbers.

    Raises
    ------
    WeightsInvalid
        The file is truncated, of another kind, or would run code.
    """
    if file.suffix == ".safetensors":
        with _reading(file), safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
            return {name: _kept(_NAMES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    return {name: _kept(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in _legacy(file, "meta").items()}


def read(file: Path, names: Iterable[str], *, device: torch.device, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return some of a file's tensors, each a copy of its own, cast and placed one at a time.

    Parameters
    ----------
    file : Path
    names : iterable of str
        Tensors to read; the others are not touched.
    device : torch.device
    dtype : torch.dtype, optional
        As in the file when left out.

    Raises
    ------
    WeightsInvalid
        As :func:`contents`.
    """
    kept: dict[str, Tensor] = {}
    for group in _groups(contents(file), names):
        with _opened(file) as tensor:
            for name in group:
                found = tensor(name)
                kept[name] = found.to(device, dtype or found.dtype, copy=True, memory_format=torch.contiguous_format)
    return kept


def _kept(dtype: str, shape: tuple[int, ...]) -> Kept:
    bits = int("".join(filter(str.isdigit, dtype)) or 8)
    return Kept(dtype, shape, math.prod(shape) * bits // 8)


def _groups(about: dict[str, Kept], names: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for name in names:
        group.append(name)
        if sum(about[waiting].bytes for waiting in group) >= _AT_ONCE:
            yield group
            group = []
    yield group


@contextmanager
def _opened(file: Path) -> Iterator[Callable[[str], Tensor]]:
    if file.suffix == ".safetensors":
        with _reading(file):
            opened = safe_open(file, "pt")  # sizes are checked here, so that what is read from it later is there
        with opened:
            yield opened.get_tensor
    else:
        yield _legacy(file, "cpu").__getitem__


def _legacy(file: Path, where: str) -> dict[str, Tensor]:
    with _reading(file):
        try:
            found = torch.load(file, map_location=where, weights_only=True, mmap=True)  # noqa: TID251 - tensors only: code in the file is refused, not run
        except RuntimeError as fault:
            if "mmap" not in str(fault):
                raise
            found = torch.load(file, map_location=where, weights_only=True)  # noqa: TID251 - as above; files of before 2020 cannot be mapped
    return {name: value for name, value in dict(found).items() if isinstance(value, Tensor)}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, AttributeError) as fault:
        if is_shortage(fault):
            raise MemoryError(str(fault)) from fault  # the file may be whole
        kind = "safetensors" if file.suffix == ".safetensors" else "weights-only"
        msg = f"{file.parent.name}/{file.name} is not a readable {kind} file: it is truncated or of another kind ({str(fault).splitlines()[0]})"
        raise WeightsInvalid(msg) from fault
