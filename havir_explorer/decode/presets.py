"""Options by name, and changes to them read from a file."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pydantic

from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.errors import RequestError, nearest

Size = Literal["small", "full"]
_LOW: dict[Size, int] = {"small": 8, "full": 16}
"""Side of the Structural Generator's low-resolution maps."""
FULL = Options(
    structural=StructuralSizes(width=4096, blocks=4, dropout=0.5, block_dropout=0.25, maps=64, channels=128),
    semantic=SemanticSizes(width=2048, blocks=4, dropout=0.5, block_dropout=0.15),
    batch=32,
    epochs=120,
    structural_rate=5e-4,
    semantic_rate=3e-4,
    weight_decay=1e-2,
    mse=1e4,
    held_out=0.034,
    check_every=260,
    save_every=1040,
    patience=20,
)
"""MindEye's low-level branch and MindBridge's trunk, their rates, decay and weights of losses; about one look at the held-out images an epoch.

The upsampler is wider where MindEye's decoder narrows (64, 128, 256 maps over its stages; 128 here throughout).
"""


def preset(size: Size, latent_shape: tuple[int, ...]) -> Options:
    """Return the options of a size: ``small`` for the teaching world on a CPU, ``full`` for a data set's published size.

    The low-resolution maps are doubled as often as the latents' shape (channels, height, width) asks for.
    """
    base, doublings = (FULL if size == "full" else Options()), 0
    height, width = latent_shape[1:]
    while min(height, width) >> doublings > _LOW[size] and not (height >> doublings) % 2 and not (width >> doublings) % 2:
        doublings += 1
    return replace(base, structural=base.structural.model_copy(update={"doublings": doublings}))


def changed(options: Options, file: Path) -> Options:
    """Return the options with what a file says otherwise.

    Parameters
    ----------
    options : Options
    file : Path
        TOML or JSON: fields of :class:`~havir_explorer.decode.options.Options` by name, sizes as tables of their own, e.g. ``batch = 16``
        and ``[semantic]`` with ``width = 1024``.

    Raises
    ------
    RequestError
        The file cannot be read, names what is no option, or gives a value that is out of range.
    """
    given = _read(file)
    known = asdict(options)
    for name in given:
        if name not in known:
            msg = f"{file} sets {name!r}, which is no option of a training; {nearest(name, known)}"
            raise RequestError(msg)
    whole = {name: getattr(options, name) for name in known}
    nested = {
        name: whole[name].model_dump() | value for name, value in given.items() if isinstance(whole[name], pydantic.BaseModel) and isinstance(value, dict)
    }
    try:
        return pydantic.TypeAdapter(Options).validate_python(whole | given | nested)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        msg = f"{file} sets {'.'.join(str(part) for part in first['loc'])} to {first['input']!r}, but it {_asks(first['msg'])}"
        raise RequestError(msg) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        given = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        msg = f"the options in {file} cannot be read ({' '.join(str(error).split())}); give a TOML or JSON file"
        raise RequestError(msg) from error
    if not isinstance(given, dict):
        msg = f"the options in {file} must be names with values; got a {type(given).__name__}"
        raise RequestError(msg)
    return given


def _asks(message: str) -> str:
    """Turn pydantic's "Input should be …" into the end of a sentence."""
    return message.replace("Input should be", "should be", 1).replace("Extra inputs are not permitted", "is no option")
