"""The CLIP towers of a checkpoint, whose weights are read when first asked for: drawing a picture needs neither."""

from __future__ import annotations

from threading import Lock
from typing import Any

from transformers import CLIPImageProcessor, CLIPTokenizer

from havir_explorer.diffuse import parts
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.source import PARTS, Source
from havir_explorer.errors import WeightsInvalid, WeightsMissing

COMPANIONS = {"image_encoder": "image_feature_extractor", "text_encoder": "tokenizer"}
"""What prepares each tower's input."""


class Towers:
    """Fills blank towers once, whichever thread asks first.

    Parameters
    ----------
    source : Source
    place : Place
    """

    def __init__(self, source: Source, place: Place) -> None:
        self._source, self._place, self._lock = source, place, Lock()

    def ready(self, part: str, tower: Any, companion: object) -> None:  # noqa: ANN401 - a CLIP tower, or None where the checkpoint has none
        """Give a tower its weights if it has none yet.

        Raises
        ------
        WeightsMissing, WeightsInvalid
            The checkpoint has no such tower, or its files are damaged; names the part, what it is needed for and what mends it.
        """
        with self._lock:
            if tower is None or companion is None:
                absent = part if tower is None else COMPANIONS[part]
                msg = (
                    f"{self._source} has no part {absent}, which {PARTS[absent].use} need: expected {absent}/{PARTS[absent].config}; "
                    f"use a checkpoint with its CLIP towers (havir weights compact --towers keeps them), or {self._source.remedy}"
                )
                raise WeightsMissing(msg)
            if any(weight.is_meta for weight in tower.parameters()):
                parts.fill(self._source, part, tower, self._place)

    def complete(self, part: str) -> bool:
        """True when the checkpoint has the tower and what prepares its input; False when either was left out altogether.

        Raises
        ------
        WeightsMissing
            Some of its files are there and others not.
        """
        if not self._source.has(part) or not self._source.has(COMPANIONS[part]):
            return False
        self._source.file(part, PARTS[part].config)
        self._source.weights(part)
        return True


def tower(source: Source, part: str) -> Any:  # noqa: ANN401 - as above
    """Return a tower without weights, or None where the checkpoint has none."""
    return parts.blank(source, part) if source.has(part) else None


def image_processor(source: Source) -> CLIPImageProcessor | None:
    """Return how pictures are prepared for the image tower, or None where the checkpoint does not say.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        Its folder is there without its file, or with a damaged one.
    """
    part = "image_feature_extractor"
    return _loaded(CLIPImageProcessor, source, part) if (source.root / part).is_dir() else None


def tokenizer(source: Source) -> CLIPTokenizer | None:
    """Return the tokenizer, or None where the checkpoint has none.

    Raises
    ------
    WeightsMissing
        It has no vocabulary: transformers would make an empty one, without a word.
    WeightsInvalid
        It is damaged, or of another size than the text tower's.
    """
    part = "tokenizer"
    folder = source.root / part
    if not folder.is_dir():
        return None
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        msg = f"{source} lacks its part tokenizer: expected tokenizer/tokenizer.json, or tokenizer/vocab.json and tokenizer/merges.txt; {source.remedy}"
        raise WeightsMissing(msg)
    found: CLIPTokenizer = _loaded(CLIPTokenizer, source, part)
    entries = source.config("text_encoder").get("vocab_size", len(found)) if source.has("text_encoder") else len(found)
    if len(found) != entries:
        msg = f"part tokenizer of the {source} has {len(found)} entries, its text_encoder {entries}; {source.remedy}"
        raise WeightsInvalid(msg)
    return found


def _loaded(kind: Any, source: Source, part: str) -> Any:  # noqa: ANN401 - a tokenizer or a processor
    source.config(part)
    try:
        return kind.from_pretrained(source.root / part, local_files_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as fault:
        msg = f"part {part} of the {source} cannot be loaded: {str(fault).splitlines()[0]}; {source.remedy}"
        raise WeightsInvalid(msg) from fault
