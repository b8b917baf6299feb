"""Which objects of the Natural Scenes Dataset's bucket a wish comes to; nothing here touches the network or the disk.

The bucket lays its files out as a tree on disk does, so a key is also the path of its file below the folder fetched into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from havir_explorer.data import design
from havir_explorer.data.betas import TRIALS
from havir_explorer.data.conventions import DEFAULT, PREPARATIONS
from havir_explorer.data.nsd import MARKER
from havir_explorer.data.stimuli import BRICK, SIDE
from havir_explorer.errors import RequestError

Group = Literal["design", "anatomy", "regions", "transforms", "behaviour", "ceiling", "betas", "pictures", "surfaces"]
Images = Literal["none", "shared", "needed", "all"]
Extra = Literal["surfaces", "mni"]

SESSIONS = {f"subj{number:02d}": count for number, count in enumerate(design.SESSIONS, start=1)}
"""Sessions that each subject completed."""
ATLASES = (
    "prf-visualrois",
    "prf-eccrois",
    "floc-faces",
    "floc-bodies",
    "floc-places",
    "floc-words",
    "streams",
    "Kastner2015",
    "HCP_MMP1",
    "corticalsulc",
    "MTL",
    "thalamus",
)
"""ROI files beside nsdgeneral; each is three volumes and a name table."""
_DRAWN_IN_VOLUME = ("MTL", "thalamus")  # their name tables lie with the templates, not with the surface labels
BRICK_KEY = BRICK.as_posix()
PICTURE_BYTES = SIDE * SIDE * 3
N_PICTURES, SHARED_PICTURES, SUBJECT_PICTURES = 73_000, 1_000, 10_000


@dataclass(frozen=True)
class Wanted:
    """One object of the bucket.

    Parameters
    ----------
    key : str
        Below the bucket's root, and below the folder it is fetched into.
    group : str
        What it serves; one of ``Group``.
    optional : bool
        The reader can do without it: where the bucket lacks it, it is left out and named.
    family : str
        Optional objects that are of use only together: where the bucket lacks one, all of them are left out.
    """

    key: str
    group: Group
    optional: bool = False
    family: str = ""


@dataclass(frozen=True)
class Order:
    """What to fetch.

    Parameters
    ----------
    subjects : tuple of str
        ``subj01`` to ``subj08``.
    sessions : tuple of int
        1-based; empty for all that a subject has.
    images : {'none', 'shared', 'needed', 'all'}
        No pictures, those every subject saw, those of the sessions asked for, or the whole brick of 73,000 (39.6 GB).
    preparation : {'b1', 'b2', 'b3'}
    extras : tuple of {'surfaces', 'mni'}
        Also cortical surfaces (the subjects' own and fsaverage), and the transform to MNI space.

    Raises
    ------
    RequestError
        A subject, session, kind of image, preparation or extra that there is not.
    """

    subjects: tuple[str, ...]
    sessions: tuple[int, ...] = ()
    images: Images = "none"
    preparation: str = DEFAULT.preparation
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        for what, asked, known in (
            ("--subjects", self.subjects, SESSIONS),
            ("--images", (self.images,), get_args(Images)),
            ("--preparation", (self.preparation,), PREPARATIONS),
            ("--extras", self.extras, get_args(Extra)),
        ):
            for name in asked:
                if name not in known:
                    msg = f"{what} takes {', '.join(known)}; got {name!r}"
                    raise RequestError(msg)
        if not self.subjects:
            msg = "--subjects names no subject; give some of 1 to 8, e.g. --subjects 1,2"
            raise RequestError(msg)
        for subject in self.subjects:
            self.sessions_of(subject)

    def sessions_of(self, subject: str) -> tuple[int, ...]:
        """Return the 1-based sessions asked for of a subject; raises RequestError where it has fewer."""
        count = SESSIONS[subject]
        outside = [number for number in self.sessions if not 1 <= number <= count]
        if outside:
            msg = f"{subject} has sessions 1 to {count}, and --sessions asks for {outside[0]}; give fewer, or 'all'"
            raise RequestError(msg)
        return self.sessions or tuple(range(1, count + 1))


def plan(order: Order) -> tuple[Wanted, ...]:
    """List every object an order comes to: the design, then subject by subject, the picture brick last.

    Parameters
    ----------
    order : Order

    Returns
    -------
    tuple of Wanted
        No key twice.
    """
    wanted = [
        Wanted(MARKER, "design", optional=True),  # a mirror of a generated tree keeps the label that says so
        Wanted("nsddata_stimuli/captions.json", "design", optional=True),
        Wanted(design.DESIGN.as_posix(), "design"),
        Wanted(design.STIM_INFO.as_posix(), "design"),
    ]
    for subject in order.subjects:
        wanted += [*_anatomy(subject), *_regions(subject), *_transforms(subject, order.extras), *_responses(subject, order)]
    if "surfaces" in order.extras:
        wanted += [one for subject in (*order.subjects, "fsaverage") for one in _surfaces(subject)]
    if order.images != "none":
        wanted.append(Wanted(BRICK_KEY, "pictures"))
    return tuple(dict.fromkeys(wanted))


def most_pictures(order: Order) -> int:
    """Return how many pictures an order can come to at most, which is known before the experiment's design is here."""
    trials = sum(min(len(order.sessions_of(subject)) * TRIALS, SUBJECT_PICTURES) for subject in order.subjects)
    return {"none": 0, "shared": SHARED_PICTURES, "needed": min(trials, N_PICTURES), "all": N_PICTURES}[order.images]


def _volumes(subject: str) -> str:
    return f"nsddata/ppdata/{subject}/func1pt8mm"


def _anatomy(subject: str) -> list[Wanted]:
    volumes = [Wanted(f"{_volumes(subject)}/{name}.nii.gz", "anatomy", optional=True) for name in ("brainmask", "mean", "T1_to_func1pt8mm")]
    return [*volumes, Wanted(f"nsddata/ppdata/{subject}/behav/responses.tsv", "behaviour", optional=True)]


def _regions(subject: str) -> list[Wanted]:
    roi, label = f"{_volumes(subject)}/roi", f"nsddata/freesurfer/{subject}/label"
    general = [Wanted(f"{roi}/{side}nsdgeneral.nii.gz", "regions") for side in ("", "lh.", "rh.")]
    general.append(Wanted(f"{label}/nsdgeneral.mgz.ctab", "regions", optional=True))
    for atlas in ATLASES:
        names = f"nsddata/templates/{atlas}.ctab" if atlas in _DRAWN_IN_VOLUME else f"{label}/{atlas}.mgz.ctab"
        keys = (*(f"{roi}/{side}{atlas}.nii.gz" for side in ("", "lh.", "rh.")), names)
        general += [Wanted(key, "regions", optional=True, family=f"{atlas} of {subject}") for key in keys]
    return general


def _transforms(subject: str, extras: Sequence[Extra]) -> list[Wanted]:
    folder = f"nsddata/ppdata/{subject}/transforms"
    names = [f"{side}.{name}.mgz" for side in ("lh", "rh") for name in (*(f"func1pt8-to-layerB{layer}" for layer in (1, 2, 3)), "white-to-fsaverage")]
    native = [Wanted(f"{folder}/{name}", "transforms") for name in names]
    return [*native, *([Wanted(f"{folder}/func1pt8-to-MNI.nii.gz", "transforms")] if "mni" in extras else [])]


def _responses(subject: str, order: Order) -> list[Wanted]:
    ceiling = Wanted(f"{_betas(subject, order)}/ncsnr.nii.gz", "ceiling")
    return [ceiling, *(Wanted(betas_key(subject, order, number), "betas") for number in order.sessions_of(subject))]


def betas_key(subject: str, order: Order, session: int) -> str:
    """Return the key of a session's betas."""
    return f"{_betas(subject, order)}/betas_session{session:02d}.hdf5"


def _betas(subject: str, order: Order) -> str:
    return f"nsddata_betas/ppdata/{subject}/func1pt8mm/{PREPARATIONS[order.preparation]}"


def _surfaces(subject: str) -> list[Wanted]:
    folder = f"nsddata/freesurfer/{subject}/surf"
    names = ("inflated", "sulc", "white", "pial", "full.flat.patch.3d")
    return [Wanted(f"{folder}/{side}.{name}", "surfaces", optional=True) for side in ("lh", "rh") for name in names]
