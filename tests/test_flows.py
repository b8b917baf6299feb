"""Both flows of a block side by side: one memory with the checkpoint's own parameters, whatever is done to those."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_versatile import UNET, conditions, tensors, tiny_model

from havir_explorer.diffuse.versatile import Conditions, VersatileUNet


@pytest.fixture
def unet():
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(3)
        return VersatileUNet(UNET).eval()


def drawn(unet):
    latents, image, text = (value.to(unet.unet.dtype) for value in tensors(conditions(tiny_model())))
    with torch.no_grad():
        return unet(latents, torch.tensor(400), Conditions(image, text, torch.full((3,), 0.3, dtype=latents.dtype))).float()


def test_settled_weights_are_the_same_weights_in_one_memory(unet):
    before, plain = {name: value.clone() for name, value in unet.state_dict().items()}, drawn(unet)
    unet.settle()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert torch.allclose(drawn(unet), plain, atol=1e-5)
    block = unet.unet.mid_block.attentions[0]
    held = block._settled.layers[0].queries.weight
    assert block.text.transformer_blocks[0].attn2.to_q.weight.data_ptr() == held[1].data_ptr()


@pytest.mark.parametrize("change", [lambda unet: unet.double().float(), lambda unet: unet.load_state_dict(unet.state_dict(), assign=True)])
def test_weights_moved_or_replaced_after_settling_are_those_that_draw(unet, change):
    unet.settle()
    change(unet)
    with torch.no_grad():
        unet.unet.mid_block.attentions[0].text.transformer_blocks[0].attn2.to_q.weight.mul_(3)
    wanted = VersatileUNet(UNET).eval()
    wanted.load_state_dict(unet.state_dict())
    unet.settle()
    assert torch.allclose(drawn(unet), drawn(wanted), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [lambda unet: unet.double(), copy.deepcopy, lambda unet: unet.load_state_dict({k: v.clone() for k, v in unet.state_dict().items()}, assign=True) and unet],
)
def test_copies_and_moved_weights_draw_before_they_are_settled_again(unet, change):
    unet.settle()
    changed = change(unet)
    with torch.no_grad():
        changed.unet.mid_block.attentions[0].text.transformer_blocks[0].attn2.to_q.weight.mul_(3)
    wanted = VersatileUNet(UNET).eval()
    wanted.load_state_dict({name: value.float() for name, value in changed.state_dict().items()})
    assert torch.allclose(drawn(changed), drawn(wanted), atol=1e-5)


def test_a_copy_of_a_compiled_denoiser_draws_with_its_own_weights(unet):
    unet.compile_steps(backend="eager")
    own = copy.deepcopy(unet)
    with torch.no_grad():
        own.unet.conv_out.weight.mul_(3)
    wanted = VersatileUNet(UNET).eval()
    wanted.load_state_dict(own.state_dict())
    assert torch.allclose(drawn(own), drawn(wanted), atol=1e-5)


def test_settled_weights_can_be_trained_and_saved(unet, tmp_path):
    unet.settle()
    latents, image, text = tensors(conditions(tiny_model()))
    unet(latents, torch.tensor(400), Conditions(image, text, torch.full((3,), 0.3))).square().mean().backward()
    layer = unet.unet.mid_block.attentions[0].text.transformer_blocks[0].attn2.to_q
    assert layer.weight.grad.abs().max() > 0
    for number, weights in enumerate(unet.flows()):
        save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / f"{number}.safetensors")
        stored = load_file(tmp_path / f"{number}.safetensors")
        assert all(torch.equal(stored[name], value) for name, value in weights.items())


def test_a_step_in_bfloat16_stays_near_float32(unet):
    exact = drawn(unet)
    latents, image, text = (value.bfloat16() for value in tensors(conditions(tiny_model())))
    unet.bfloat16().settle()
    with torch.no_grad():
        rough = unet(latents, torch.tensor(400), Conditions(image, text, torch.full((3,), 0.3)))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
