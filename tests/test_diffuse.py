"""The denoiser, its loop and its files, on a tiny random model with the published architecture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from havir_explorer.diffuse import weights
from havir_explorer.diffuse.model import VersatileDiffusion, fit_preview
from havir_explorer.diffuse.sampler import generate
from havir_explorer.diffuse.versatile import Conditions, VersatileUNet
from havir_explorer.errors import Cancelled, RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.records import Decoded, Settings

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SPECIAL = {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 5}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@pytest.fixture(scope="module")
def tiny() -> VersatileDiffusion:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(5)
        tower = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
        entries = {c: i for i, c in enumerate(["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"])}
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, **blocks)
        blank = torch.zeros(1)
        model = VersatileDiffusion(
            VersatileUNet(UNET).eval().requires_grad_(False),
            vae.eval().requires_grad_(False),
            CLIPVisionModelWithProjection(CLIPVisionConfig(**tower, image_size=16, patch_size=8)).eval(),
            CLIPTextModelWithProjection(CLIPTextConfig(**tower, vocab_size=6, max_position_embeddings=6, **SPECIAL)).eval(),
            CLIPTokenizer(vocab=entries, merges=[], model_max_length=6),
            CLIPImageProcessor(size={"shortest_edge": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3),
            SCHEDULER,
            blank,
            blank,
            torch.zeros(5, 3),
        )
        return weights.completed(model)


def conditions(model: VersatileDiffusion, batch: int = 3, seed: int = 0) -> Decoded:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal((batch, *shape)).astype(np.float32)  # noqa: E731
    return Decoded(draw(*model.latent_shape), draw(*model.empty_image.shape[1:]), draw(*model.empty_text.shape[1:]))


def rows(decoded: Decoded, chosen: slice) -> Decoded:
    return Decoded(decoded.latents[chosen], decoded.image_embeds[chosen], decoded.text_embeds[chosen])


class PatchedDual(DualTransformer2DModel):
    """diffusers' block, given the keyword its own UNet passes and it lacks (upstream issue 13651)."""

    def forward(self, *args: object, encoder_attention_mask: object = None, **kwargs: object) -> object:
        del encoder_attention_mask
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_the_unet_equals_diffusers_own_dual_transformer(tiny: VersatileDiffusion, mix: float) -> None:
    image, text = tiny.unet.flows()
    reference = UNet2DConditionModel.from_config(UNET)
    reference.load_state_dict(image)
    twin = UNet2DConditionModel.from_config(UNET)
    twin.load_state_dict(text, strict=False)
    for name, module in list(reference.named_modules()):
        if isinstance(module, Transformer2DModel):
            parent, _, index = name.rpartition(".")
            size = {"attention_head_dim": module.config.attention_head_dim, "in_channels": module.config.in_channels}
            dual = PatchedDual(num_attention_heads=2, norm_num_groups=8, cross_attention_dim=24, **size)
            dual.transformers = torch.nn.ModuleList([module, twin.get_submodule(name)])
            dual.condition_lengths = [6, 5]
            dual.transformer_index_for_condition = [1, 0]
            dual.mix_ratio = mix
            reference.get_submodule(parent)[int(index)] = dual
    decoded = conditions(tiny)
    latents, image_embeds, text_embeds = (torch.from_numpy(v) for v in (decoded.latents, decoded.image_embeds, decoded.text_embeds))
    times = torch.tensor([1, 500, 999])
    with torch.no_grad():
        theirs = reference(latents, times, torch.cat([text_embeds, image_embeds], dim=1)).sample
        ours = tiny.unet(latents, times, Conditions.mixed(image_embeds, text_embeds, torch.full((3,), mix)))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_mix_is_one_number_a_picture(tiny: VersatileDiffusion) -> None:
    decoded = conditions(tiny)
    values = [torch.from_numpy(v) for v in (decoded.latents, decoded.image_embeds, decoded.text_embeds)]
    mix = torch.tensor([0.0, 1.0, 0.3])
    with torch.no_grad():
        together = tiny.unet(values[0], torch.tensor(10), Conditions.mixed(values[1], values[2], mix))
        for row in range(3):
            one = [v[row : row + 1] for v in values]
            alone = tiny.unet(one[0], torch.tensor(10), Conditions.mixed(one[1], one[2], mix[row : row + 1]))
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize(("mix", "silent"), [(0.0, "text"), (1.0, "image")])
def test_a_flow_without_weight_is_not_run(tiny: VersatileDiffusion, mix: float, silent: str) -> None:
    ran = []
    blocks = [(name.rpartition(".")[2], module) for name, module in tiny.unet.named_modules() if isinstance(module, Transformer2DModel)]
    hooks = [module.register_forward_hook(lambda _m, _i, _o, flow=flow: ran.append(flow)) for flow, module in blocks]
    generate(tiny, conditions(tiny, 1), [Settings(steps=2, mix=mix)])
    for hook in hooks:
        hook.remove()
    assert ran
    assert silent not in ran


def test_strength_zero_returns_the_decoded_latents(tiny: VersatileDiffusion) -> None:
    decoded = conditions(tiny)
    drawn = generate(tiny, decoded, [Settings(strength=0)] * 3)
    assert np.array_equal(drawn.latents.numpy(), decoded.latents)
    assert (drawn.steps_run, drawn.signal) == (0, 1.0)


def test_strength_one_ignores_the_decoded_latents(tiny: VersatileDiffusion) -> None:
    decoded = conditions(tiny, 1)
    other = replace(decoded, latents=-decoded.latents)
    settings = [Settings(strength=1, steps=3)]
    assert torch.equal(generate(tiny, decoded, settings).latents, generate(tiny, other, settings).latents)
    partly = [Settings(strength=0.7, steps=3)]
    assert not torch.allclose(generate(tiny, decoded, partly).latents, generate(tiny, other, partly).latents)


def test_fifty_steps_at_three_quarters_are_those_of_the_literature(tiny: VersatileDiffusion) -> None:
    drawn = generate(tiny, conditions(tiny, 1), [Settings(steps=50, strength=0.75)])
    assert drawn.steps_run == 37
    assert drawn.signal**2 == pytest.approx(0.0705, abs=5e-4)  # method 2.5: first t = 721


def test_the_same_request_gives_the_same_bytes_and_the_batch_does_not_matter(tiny: VersatileDiffusion) -> None:
    decoded = conditions(tiny)
    settings = [Settings(seed=seed, steps=5) for seed in (3, 4, 5)]
    together = generate(tiny, decoded, settings).latents
    assert torch.equal(together, generate(tiny, decoded, settings).latents)
    for row in range(3):
        alone = generate(tiny, rows(decoded, slice(row, row + 1)), settings[row : row + 1]).latents
        assert torch.allclose(together[row : row + 1], alone, atol=1e-4)


def test_the_loop_is_the_plain_loop_over_the_scheduler(tiny: VersatileDiffusion) -> None:
    decoded, settings = conditions(tiny, 1), Settings(seed=7, steps=10, strength=0.6, guidance=2.5, mix=0.25)
    scheduler = DDIMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(10)
    latents, image, text = (torch.from_numpy(v) for v in (decoded.latents, decoded.image_embeds, decoded.text_embeds))
    noise = torch.randn(tiny.latent_shape, generator=torch.Generator().manual_seed(7))[None]
    times = scheduler.timesteps[4:]
    sample = scheduler.add_noise(latents, noise, times[:1])
    mix = torch.tensor([0.25])
    with torch.no_grad():
        for time in times:
            unguided = tiny.unet(sample, time, Conditions(tiny.empty_image, tiny.empty_text, mix))
            guided = tiny.unet(sample, time, Conditions(image, text, mix))
            sample = scheduler.step(unguided + 2.5 * (guided - unguided), time, sample).prev_sample
    assert torch.allclose(generate(tiny, decoded, [settings]).latents, sample, atol=1e-4)


def test_cancel_stops_within_the_step(tiny: VersatileDiffusion) -> None:
    seen = []

    def stop(done: int, count: int, clean: torch.Tensor) -> None:
        seen.append((done, count, tuple(clean.shape)))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(tiny, conditions(tiny, 1), [Settings(steps=10, strength=1)], on_step=stop)
    assert seen == [(1, 10, (1, 4, 8, 8)), (2, 10, (1, 4, 8, 8))]


def test_bad_batches_are_said_in_words(tiny: VersatileDiffusion) -> None:
    good = conditions(tiny, 2)
    with pytest.raises(RequestError, match="1 for 2 rows"):
        generate(tiny, good, [Settings()])
    with pytest.raises(RequestError, match="one batch"):
        generate(tiny, good, [Settings(steps=3), Settings(steps=4)])
    with pytest.raises(RequestError, match="text_embeds have shape"):
        generate(tiny, replace(good, text_embeds=good.text_embeds[:, :2]), [Settings()] * 2)
    broken = good.latents.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(RequestError, match="not finite"):
        generate(tiny, replace(good, latents=broken), [Settings()] * 2)


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
