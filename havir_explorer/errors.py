"""What can go wrong, said so that the reader can act: what was asked, what was found, where, what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class HavirError(Exception):
    """Root of every error this package raises for a user's input or environment."""


class DataMissing(HavirError, FileNotFoundError):
    """A data file is absent."""


class DataInvalid(HavirError, ValueError):
    """A data file is there but is truncated, of another shape, or of another subject."""


class WeightsMissing(HavirError, FileNotFoundError):
    """A part of a model is absent."""


class WeightsInvalid(HavirError, ValueError):
    """A model's files do not fit together, or do not fit the data they are asked to decode."""


class RequestError(HavirError, ValueError):
    """A request asks for something that does not exist or is out of range."""


class MaskError(RequestError):
    """A mask names an unknown ROI or leaves no voxel."""


class SourceUnavailable(HavirError, ConnectionError):
    """A server that holds data cannot be reached, or does not let it be read."""


class ClusterUnavailable(HavirError, ConnectionError):
    """The workers that were to share the work cannot be reached, or are lost again and again."""


class OutputError(HavirError, OSError):
    """A result cannot be written where it was asked for."""


class DeviceOutOfMemory(HavirError, RuntimeError):
    """The device has no room for the work asked."""


class TrainingDiverged(HavirError, ArithmeticError):
    """A loss or its gradient is not finite any more."""


class Cancelled(Exception):
    """The user asked to stop; nothing half-done is kept."""


def is_shortage(fault: BaseException) -> bool:
    """Whether a fault is of memory; torch raises a class of its own on a GPU, and a plain RuntimeError on the CPU, on MPS and in CUDA's libraries."""
    said = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError" or any(words in str(fault) for words in said)


def reason(error: OSError) -> str:
    """Return why a file or folder cannot be written or read, and what to do, as a phrase for the end of an error's sentence."""
    reasons = {
        errno.ENOSPC: "the disk is full; make room or choose another folder",
        errno.EDQUOT: "your share of the disk is used up; make room or choose another folder",
        **dict.fromkeys((errno.EACCES, errno.EPERM), "it is not allowed there; choose a folder of your own"),
        errno.EROFS: "that disk is read-only; choose another folder",
        errno.ENOENT: "there is no such file or folder; check the name, or make the folder first",
        **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "there is a file of that name, or of a folder's on the way to it; choose another name"),
        errno.EISDIR: "there is a folder of that name; choose another name",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))


def nearest(asked: str, known: Iterable[str], count: int = 3) -> str:
    """Return the known names closest to ``asked`` as a phrase, for the end of an error's sentence."""
    names = list(known)
    folded = {name.casefold(): name for name in names}
    close = [folded[n] for n in difflib.get_close_matches(asked.casefold(), folded, count, 0.3)]
    return f"nearest: {', '.join(close or names[:count])}"
