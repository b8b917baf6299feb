"""The golden latents of the shipped generator: a fixed request's result, stored, so that no new diffusers or torch changes pictures unnoticed.

After the shipped weights were replaced on purpose: ``python tests/golden.py`` writes the file anew; commit it with the weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from havir_explorer.diffuse import weights
from havir_explorer.diffuse.sampler import generate
from havir_explorer.records import Decoded, FloatArray, Settings

FILE = Path(__file__).parent / "golden_demo.npz"
CASES = {
    "ddim": Settings(seed=11, steps=8, strength=0.75, guidance=4.0, mix=0.4, scheduler="ddim"),
    "unipc": Settings(seed=12, steps=8, strength=1.0, guidance=4.0, mix=0.0, scheduler="unipc", convention="mindeye"),
    "dpmsolver++": Settings(seed=13, steps=8, strength=0.75, guidance=4.0, mix=0.7, scheduler="dpmsolver++", guidance_stop=0.8),
    "karras": Settings(seed=14, steps=8, strength=0.75, guidance=4.0, mix=0.4, scheduler="karras"),
}


def digest() -> str:
    """SHA-256 of the weights that draw: both flows and the encoded unconditional embeddings."""
    folder, found = weights.demo_folder(), hashlib.sha256()
    for name in ("image_unet/diffusion_pytorch_model.safetensors", "text_unet/diffusion_pytorch_model.safetensors", "havir_extras.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def latents() -> dict[str, FloatArray]:
    """Final latents, float32 (4, h, w), of each case, from conditions that no other part of the package makes."""
    model, rng = weights.load(), np.random.default_rng(7)
    shapes = (model.latent_shape, model.empty_image.shape[1:], model.empty_text.shape[1:])
    decoded = Decoded(*(rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes))
    return {name: generate(model, decoded, [settings]).latents[0].numpy() for name, settings in CASES.items()}


if __name__ == "__main__":
    np.savez_compressed(FILE, weights=np.array(digest()), **latents())
    print(f"wrote {FILE} for the weights {digest()[:12]}")
