"""How responses are normalised: NSD's three preparations scored per session, and the conventions of three published decoders, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from havir_explorer.errors import RequestError, nearest

PREPARATIONS = {"b1": "betas_assumehrf", "b2": "betas_fithrf", "b3": "betas_fithrf_GLMdenoise_RR"}
"""NSD's names for its preparations, and the folders they lie in."""

Statistics = Literal["session", "training trials", "training images"]


@dataclass(frozen=True)
class Convention:
    """One way from percent signal change to z-scores.

    Parameters
    ----------
    name : str
    preparation : {'b1', 'b2', 'b3'}
        Whose files are read; no other preparation is ever mixed in.
    last_session : int
        Later sessions are left out.
    statistics : {'session', 'training trials', 'training images'}
        What a voxel's mean and deviation are taken over: all trials of the session (ddof 0); those of them that show no shared picture
        (ddof 0); or, over all sessions, the averages of each picture that is not shared (ddof 1).
    words : str
        What a trained decoder stores, and is compared with when it is loaded.
    """

    name: str
    preparation: str
    last_session: int
    statistics: Statistics
    words: str


def _per_session(name: str) -> Convention:
    return Convention(name, name, 40, "session", f"{name}, percent signal change, z-scored per voxel within session")


CONVENTIONS = {
    convention.name: convention
    for convention in (
        _per_session("b3"),
        _per_session("b2"),
        _per_session("b1"),
        # ozcelikfu/brain-diffuser: mean over a picture's trials, then training pictures' mean and deviation for training and test alike
        Convention("brain-diffuser", "b3", 37, "training images", "brain-diffuser: b3, sessions 1-37, z-scored per voxel over training image means (ddof 1)"),
        # MedARC-AI/fMRI-reconstruction-NSD: its release was scored beforehand by code that is not public; within session, as its successor's is
        Convention("mindeye1", "b3", 37, "session", "mindeye1: b3, sessions 1-37, z-scored per voxel within session"),
        # MedARC-AI/MindEyeV2: the notebook scores within session, the paper takes mean and deviation from training trials; both hold here
        Convention("mindeye2", "b2", 40, "training trials", "mindeye2: b2, z-scored per voxel within session by its training trials"),
    )
}
DEFAULT = CONVENTIONS["b3"]


def convention(name: str) -> Convention:
    """Return a convention by its name.

    Raises
    ------
    RequestError
        No such convention; the sentence lists the nearest names.
    """
    if name not in CONVENTIONS:
        msg = f"no convention is called {name!r}; {nearest(name, CONVENTIONS, 6)}"
        raise RequestError(msg)
    return CONVENTIONS[name]
