"""A checkpoint's files, embeddings and preview, on a tiny random model with the published architecture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_versatile import tiny_model

from havir_explorer.diffuse.model import VersatileDiffusion, fit_preview


@pytest.fixture(scope="module")
def tiny() -> VersatileDiffusion:
    return tiny_model()


def test_embeddings_have_the_published_norms(tiny: VersatileDiffusion) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens = tiny.embed_images(pictures)
    assert np.allclose(np.linalg.norm(tokens[:, 0], axis=-1), 1, atol=1e-5)  # class token; the others keep their ratio to it
    assert not np.allclose(np.linalg.norm(tokens[:, 1:], axis=-1), 1, atol=1e-2)
    ids = tiny.tokenizer(["a b"], padding="max_length", max_length=6, return_tensors="pt")["input_ids"]
    out = tiny.text_encoder(input_ids=ids)
    expected = tiny.text_encoder.text_projection(out.last_hidden_state) / out.text_embeds.norm()
    assert np.allclose(tiny.embed_texts(["a b"]), expected.detach().numpy(), atol=1e-5)


def test_the_preview_is_the_best_linear_picture(tiny: VersatileDiffusion) -> None:
    rng = torch.Generator().manual_seed(3)
    truth = torch.rand(5, 3, generator=rng) * 0.2
    latents = torch.randn(6, 4, 8, 8, generator=rng) * 0.3
    flat = latents.permute(0, 2, 3, 1) @ truth[:4] + truth[4] + 0.3
    pictures = (flat.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    fitted = fit_preview(latents, pictures)
    shown = replace(tiny, preview_map=fitted).preview(latents[0])
    assert np.abs(shown.astype(int) - pictures[0]).max() <= 2
