"""A checkpoint's files, embeddings and preview, on a tiny random model with the published architecture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_versatile import conditions, tiny_model
from transformers import CLIPTokenizer

from havir_explorer.diffuse import weights
from havir_explorer.diffuse.model import VersatileDiffusion, fit_preview
from havir_explorer.diffuse.sampler import generate
from havir_explorer.errors import WeightsInvalid, WeightsMissing
from havir_explorer.records import Settings


@pytest.fixture(scope="module")
def tiny() -> VersatileDiffusion:
    return tiny_model()


def test_a_checkpoint_survives_the_disk(tiny: VersatileDiffusion, tmp_path: Path) -> None:
    weights.save(tiny, tmp_path, torch.float32)
    loaded = weights.load(tmp_path)
    decoded = conditions(tiny, 1)
    assert torch.equal(generate(loaded, decoded, [Settings()]).latents, generate(tiny, decoded, [Settings()]).latents)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    for ask in ("encode_latents", "embed_images", "image_features"):
        assert np.allclose(getattr(loaded, ask)(pictures), getattr(tiny, ask)(pictures), atol=1e-6)
    assert np.allclose(loaded.embed_texts(["a b", ""]), tiny.embed_texts(["a b", ""]), atol=1e-6)
    assert not any("down_blocks.1" in key or "conv" in key for key in tiny.unet.flows()[1])


@pytest.mark.parametrize("part", sorted(weights.PARTS))
def test_a_missing_part_is_named(tiny: VersatileDiffusion, tmp_path: Path, part: str) -> None:
    weights.save(tiny, tmp_path)
    (tmp_path / part / weights.PARTS[part][-1]).unlink()
    with pytest.raises(WeightsMissing, match=f"lacks its part {part}"):
        weights.load(tmp_path)


def test_a_tokenizer_without_its_vocabulary_is_refused(tiny: VersatileDiffusion, tmp_path: Path) -> None:
    weights.save(tiny, tmp_path)
    file = tmp_path / "tokenizer" / "tokenizer.json"
    whole = file.read_text()
    file.unlink()
    with pytest.raises(WeightsMissing, match="lacks its part tokenizer"):
        weights.load(tmp_path)
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(WeightsInvalid, match="part tokenizer"):
        weights.load(tmp_path)
    CLIPTokenizer(vocab={**tiny.tokenizer.get_vocab(), "c</w>": 6}, merges=[], model_max_length=6).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(WeightsInvalid, match="has 7 entries, its text_encoder 6"):
        weights.load(tmp_path)


def test_truncated_and_foreign_weights_are_refused(tiny: VersatileDiffusion, tmp_path: Path) -> None:
    weights.save(tiny, tmp_path)
    file = tmp_path / "image_unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsInvalid, match=r"image_unet/diffusion_pytorch_model\.safetensors"):
        weights.load(tmp_path)
    file.write_bytes(whole)
    config = tmp_path / "image_unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 32}))
    with pytest.raises(WeightsInvalid, match="do not fit"):
        weights.load(tmp_path)
    with pytest.raises(WeightsMissing, match="does not exist"):
        weights.load(tmp_path / "elsewhere")


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
