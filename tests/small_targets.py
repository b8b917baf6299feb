"""A small target store: pictures of the small world under the small encoder, five in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from small_world import SmallEncoder, SmallWorld

from havir_explorer.decode import target_making
from havir_explorer.decode.target_making import Plan
from havir_explorer.decode.target_store import Manifest, TargetStore
from havir_explorer.decode.targets import Rows, Shapes, encode
from havir_explorer.records import IntArray

SHARD, BATCH = 5, 2
BLANK = Manifest(
    dataset="small",
    generator=tuple(float(n) for n in range(1, 25)),
    generator_name="small",
    caption_target="mean",
    image_source="stimulus",
    shapes=Shapes((4, 8, 8), (5, 6), (4, 6)),
)


@dataclass
class Counting:
    """Encodes a few at a time, and remembers which pictures were encoded."""

    world: SmallWorld
    encoded: list[int] = field(default_factory=list)

    def __call__(self, nsd_ids: IntArray) -> Iterator[tuple[range, Rows]]:
        for start in range(0, len(nsd_ids), BATCH):
            places = range(start, min(start + BATCH, len(nsd_ids)))
            self.encoded += nsd_ids[start : places.stop].tolist()
            yield places, encode(self.world, nsd_ids[start : places.stop], SmallEncoder())


def plan(folder: Path, nsd_ids: IntArray, world: SmallWorld | None = None, blank: Manifest = BLANK) -> Plan:
    return target_making.plan(world or SmallWorld(), nsd_ids, folder, blank, shard=SHARD)


def make(folder: Path, nsd_ids: IntArray, world: SmallWorld | None = None) -> tuple[TargetStore, list[int]]:
    """Make or extend the store; return it and the pictures that were encoded."""
    world = world or SmallWorld()
    encode_all = Counting(world)
    return target_making.make(plan(folder, nsd_ids, world), encode_all), encode_all.encoded


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


IDS = np.arange(3, 20)
