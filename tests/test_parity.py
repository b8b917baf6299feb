"""The denoiser against diffusers' own dual-guided blocks and UNet, and against itself with nothing computed ahead."""

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from tiny_versatile import UNET, conditions, patched_dual, reference_unet, tensors, tiny_model

from havir_explorer.diffuse.blocks import read
from havir_explorer.diffuse.versatile import Conditions, DualFlowBlock, VersatileUNet
from havir_explorer.errors import WeightsInvalid

TOKENS = (77, 257)  # of text and image, as published


@pytest.fixture(scope="module")
def unet():
    return tiny_model().unet


@pytest.fixture(scope="module")
def given():
    return tensors(conditions(tiny_model()))


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_the_unet_equals_diffusers_own_dual_transformer(unet, given, mix):
    latents, image, text = given
    times = torch.tensor([1, 500, 999])
    with torch.no_grad():
        theirs = reference_unet(unet, mix, (6, 5))(latents, times, torch.cat([text, image], dim=1)).sample
        ours = unet(latents, times, Conditions.mixed(image, text, torch.full((3,), mix)))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("change", [{"use_linear_projection": True}, {"transformer_layers_per_block": 2, "layers_per_block": 2}, {"sample_size": 9}])
def test_the_unet_equals_diffusers_own_in_other_configurations_too(change):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        unet = VersatileUNet({**UNET, **change}).eval()
        side = unet.unet.config.sample_size
        latents, image, text = torch.randn(2, 4, side, side), torch.randn(2, 5, 24), torch.randn(2, 6, 24)
    with torch.no_grad():
        theirs = reference_unet(unet, 0.4, (6, 5))(latents, torch.tensor(321), torch.cat([text, image], dim=1)).sample
        assert torch.allclose(unet(latents, torch.tensor(321), Conditions(image, text, torch.full((2,), 0.4))), theirs, atol=1e-5)


@pytest.mark.parametrize("channels", [320, 640, 1280])
def test_blocks_of_the_published_sizes_equal_diffusers_own(channels):
    """8 heads, context of 768, 77 text and 257 image tokens; only the feature maps are smaller than in the published model."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(2)
        image, text = (Transformer2DModel(8, channels // 8, channels, norm_num_groups=32, cross_attention_dim=768).eval() for _ in range(2))
        hidden, tokens = torch.randn(2, channels, 4, 4), torch.randn(2, sum(TOKENS), 768)
    with torch.no_grad():
        theirs = patched_dual(image, text, 0.4, TOKENS)(hidden, tokens, return_dict=False)[0]
        known = read(image, tokens[:, TOKENS[0] :]), read(text, tokens[:, : TOKENS[0]])
        ours = DualFlowBlock(image, text)(hidden, *known, torch.full((2, 1, 1, 1), 0.4))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("text_only", [False, True])
def test_a_mix_of_nothing_or_all_is_the_single_flow(unet, given, text_only):
    latents, image, text = given
    time, mix = torch.tensor(300), torch.full((3,), float(text_only))
    with torch.no_grad():
        single = unet(latents, time, Conditions.single(text if text_only else image, text=text_only))
        assert torch.equal(unet(latents, time, Conditions.mixed(image, text, mix)), single)
        assert torch.allclose(unet(latents, time, Conditions(image, text, mix)), single, atol=1e-6)  # both run, one weighs nothing


def test_the_mix_is_one_number_a_picture(unet, given):
    mix = torch.tensor([0.0, 1.0, 0.3])
    with torch.no_grad():
        together = unet(given[0], torch.tensor(10), Conditions.mixed(given[1], given[2], mix))
        for row in range(3):
            one = [value[row : row + 1] for value in given]
            alone = unet(one[0], torch.tensor(10), Conditions.mixed(one[1], one[2], mix[row : row + 1]))
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_what_is_computed_once_gives_what_is_computed_every_time(unet, given):
    """Keys, values and times computed ahead, the unconditional ones of one row, and latents doubled only where a condition is read."""
    latents, image, text = given
    empty = tiny_model().empty_image, tiny_model().empty_text
    mix, times = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([700, 300, 20])
    with torch.no_grad():
        known = unet.read(Conditions(image, text, mix)).below(unet.read(Conditions(*empty, mix)), 3)
        moments = [moment.split(1) for moment in unet.embed(times)]
        for step, time in enumerate(times):
            ahead = unet.denoise(latents, [moment[step] for moment in moments], known)
            both = (torch.cat([without.expand_as(own), own]) for without, own in zip(empty, (image, text), strict=True))
            at_once = unet(latents.repeat(2, 1, 1, 1), time, Conditions(*both, mix.repeat(2)))
            assert torch.allclose(ahead, at_once, atol=1e-6)


def test_nothing_of_a_call_stays_in_the_denoiser(unet, given):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    held = {id(module): set(vars(module)) for module in unet.modules()}
    with torch.no_grad():
        unet(given[0], torch.tensor(10), Conditions(given[1], given[2], torch.full((3,), 0.5)))
    assert held == {id(module): set(vars(module)) for module in unet.modules()}
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_the_compiled_steps_are_the_same(unet, given):
    """Traced whole by torch.compile; what a backend makes of the trace is the backend's."""
    latents, image, text = given
    compiled = VersatileUNet(UNET).eval()
    compiled.load_state_dict(unet.state_dict())
    compiled.compile_steps(backend="eager")
    with torch.no_grad():
        both = Conditions(image, text, torch.full((3,), 0.5))
        assert torch.allclose(compiled(latents, torch.tensor(10), both), unet(latents, torch.tensor(10), both), atol=1e-6)


@pytest.mark.parametrize("change", [{"act_fn": "gelu"}, {"resnet_time_scale_shift": "scale_shift"}, {"class_embed_type": "timestep"}])
def test_a_configuration_that_the_walk_is_not_written_for_is_refused(change):
    with pytest.raises(WeightsInvalid, match=f"{next(iter(change))} = .* which Versatile Diffusion has not"):
        VersatileUNet({**UNET, **change})
