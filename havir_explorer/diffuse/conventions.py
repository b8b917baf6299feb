"""What other code bases do where the paper leaves it open, so that their results can be compared with (method 2.2 and 2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from havir_explorer.records import Convention, Settings


@dataclass(frozen=True)
class Habits:
    """How a code base starts and guides.

    Parameters
    ----------
    lead : int
        Schedule indices between the time to which the latents are noised and the first time that is denoised; 0: the same time.
    unconditional : {'encoded', 'zeros'}
        What stands for "no condition": the encodings of a mid-grey picture and of the empty caption, or tensors of zeros.
    settings : Settings
        The numbers its authors publish, with seed 0.
    """

    lead: int
    unconditional: Literal["encoded", "zeros"]
    settings: Settings


CONVENTIONS: dict[Convention, Habits] = {
    "havir": Habits(0, "encoded", Settings(steps=50, guidance=7.5, mix=0.4, scheduler="ddim")),
    # Ozcelik & VanRullen 2023: 37 of 50 steps noise to schedule index 37 (t = 741) and denoise from index 36 (t = 721).
    "brain-diffuser": Habits(1, "encoded", Settings(steps=50, strength=0.75, guidance=7.5, mix=0.4, scheduler="ddim", convention="brain-diffuser")),
    # Scotti et al. 2023: image flow only; noised and denoised from the same time, against zeros.
    "mindeye": Habits(0, "zeros", Settings(steps=20, strength=0.85, guidance=3.5, mix=0.0, scheduler="unipc", convention="mindeye")),
}
