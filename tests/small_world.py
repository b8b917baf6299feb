"""A data set and an encoder small enough to reason about: two causes a picture, one read by spatial voxels, one by semantic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from havir_explorer.data.dataset import Atlas, Geometry, Roi, SurfaceMap
from havir_explorer.records import FloatArray, IntArray, UInt8Array

SPATIAL, SEMANTIC, OTHER = 40, 50, 10
VOXELS = SPATIAL + SEMANTIC + OTHER
TRAIN, TEST, REPEATS, SIDE = 90, 12, 3, 16


class SmallWorld:
    """Pictures are two-colour halves: the left half's colour drives V1d and hV4, the right half's FFA-1 and a stretch of nsdgeneral."""

    name, root, synthetic, convention = "small", Path("small"), True, "z-scored"

    def __init__(self, seed: int = 0, noise: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        count = TRAIN + TEST
        self.left, self.right = rng.uniform(0, 1, (2, count, 3)).astype(np.float32)
        self._trials = pd.DataFrame(
            {
                "session": 1,
                "trial_in_session": np.arange(count * REPEATS),
                "nsd_id": np.tile(np.arange(count), REPEATS),
                "repeat": np.repeat(np.arange(REPEATS), count),
                "n_repeats": REPEATS,
                "shared": np.tile(np.arange(count) >= TRAIN, REPEATS),
                "coco_id": 0,
            }
        )
        drive = np.zeros((count, VOXELS), np.float32)
        drive[:, :SPATIAL] = (self.left - 0.5) @ rng.normal(size=(3, SPATIAL)) * 2
        drive[:, SPATIAL : SPATIAL + SEMANTIC] = (self.right - 0.5) @ rng.normal(size=(3, SEMANTIC)) * 2
        self._responses = (drive[self._trials["nsd_id"]] + noise * rng.normal(size=(len(self._trials), VOXELS))).astype(np.float32)

    def subjects(self) -> tuple[str, ...]:
        return ("subj01", "subj02")

    def sources(self, subject):
        return (self.root,)

    def trials(self, subject: str) -> pd.DataFrame:
        return self._trials

    def responses(self, subject: str, trials: IntArray) -> FloatArray:
        return self._responses[trials]

    def stimuli(self, nsd_ids: IntArray) -> UInt8Array:
        pictures = np.empty((len(nsd_ids), SIDE, SIDE, 3), np.float32)
        pictures[:, :, : SIDE // 2] = self.left[nsd_ids][:, None, None]
        pictures[:, :, SIDE // 2 :] = self.right[nsd_ids][:, None, None]
        return (pictures * 255).round().astype(np.uint8)

    def captions(self, nsd_id: int) -> tuple[str, ...]:
        return (f"picture {nsd_id}", f"one more word on {nsd_id}")

    def atlas(self, subject: str) -> Atlas:
        def region(name: str, file: str, low: int, high: int) -> Roi:
            voxels = np.zeros(VOXELS, np.bool_)
            voxels[low:high] = True
            return Roi(name, file, voxels)

        end = SPATIAL + SEMANTIC
        rois = (
            region("V1v", "prf-visualrois", 0, 10),
            region("V1d", "prf-visualrois", 10, 20),
            region("hV4", "prf-visualrois", 20, SPATIAL),
            region("FFA-1", "floc-faces", end - 10, end),
            region("nsdgeneral", "nsdgeneral", 0, end - 5),
        )
        return Atlas(rois, np.arange(VOXELS) % 2 == 1)

    def geometry(self, subject: str) -> Geometry:
        start = 100 * self.subjects().index(subject)
        return Geometry(np.arange(start, start + VOXELS), (10, 10, 20), np.eye(4))

    def ncsnr(self, subject: str) -> FloatArray:
        return np.linspace(0, 1, VOXELS, dtype=np.float32)

    def surface(self, subject: str, mesh: str = "") -> SurfaceMap:
        return SurfaceMap("fsaverage5", sparse.csr_array((0, VOXELS), dtype=np.float32), np.zeros(0, np.float32))


class SmallEncoder:
    """Latents are 8 x 8 thumbnails, image tokens read the right half, text tokens count the words."""

    def __init__(self) -> None:
        self._read = np.random.default_rng(1).normal(size=(3, 5 * 6)).astype(np.float32)

    def encode_latents(self, pictures: UInt8Array) -> FloatArray:
        small = pictures.reshape(len(pictures), 8, SIDE // 8, 8, SIDE // 8, 3).mean((2, 4)) / 127.5 - 1
        return np.concatenate((small, small.mean(-1, keepdims=True)), -1).transpose(0, 3, 1, 2).astype(np.float32)

    def embed_images(self, pictures: UInt8Array) -> FloatArray:
        colours = pictures[:, 0, -1].astype(np.float32) / 127.5 - 1
        tokens = (1 + colours @ self._read).reshape(-1, 5, 6)
        return tokens / np.linalg.norm(tokens[:, :1], axis=-1, keepdims=True)

    def embed_texts(self, texts: list[str]) -> FloatArray:
        words = np.array([len(text.split()) for text in texts], np.float32)
        return np.broadcast_to(words[:, None, None], (len(texts), 4, 6)).copy()
