"""The denoising loop: its solvers, starts, guidance and conventions, against plain loops over diffusers' schedulers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from tiny_versatile import SCHEDULER, conditions, rows, tensors, tiny_model

from havir_explorer.diffuse import weights
from havir_explorer.diffuse.conventions import CONVENTIONS
from havir_explorer.diffuse.guidance import Unconditional
from havir_explorer.diffuse.sampler import generate
from havir_explorer.diffuse.schedule import schedule
from havir_explorer.diffuse.versatile import Conditions
from havir_explorer.errors import RequestError
from havir_explorer.records import Settings

CLASSES = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler, "dpmsolver++": DPMSolverMultistepScheduler}


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def unit_noise(model, seed):
    return torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))[None]


def plain_loop(model, decoded, settings, empty=None, guided=lambda _step: True, noised=None):
    """Every step by itself: both predictions apart, keys, values and times anew; ``noised`` is the time noised to when it is not the first."""
    solver = CLASSES[settings.scheduler].from_config(SCHEDULER)
    solver.set_timesteps(settings.steps)
    first = settings.steps - int(settings.steps * settings.strength)
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(first)
    times = solver.timesteps[first:]
    (latents, image, text), mix = tensors(decoded), torch.tensor([settings.mix])
    noise = unit_noise(model, settings.seed)
    sample = noise if settings.strength == 1 else DDIMScheduler.from_config(SCHEDULER).add_noise(latents, noise, times[:1] if noised is None else noised)
    without, with_ = Conditions(*(empty or (model.empty_image, model.empty_text)), mix), Conditions(image, text, mix)
    with torch.no_grad():
        for step, time in enumerate(times, start=first):
            predicted = model.unet(sample, time, with_)
            if guided(step):
                unguided = model.unet(sample, time, without)
                predicted = unguided + settings.guidance * (predicted - unguided)
            sample = solver.step(predicted, time, sample).prev_sample
    return sample


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", CLASSES)
def test_the_loop_is_the_plain_loop_over_diffusers_scheduler(tiny, scheduler, strength):
    decoded = conditions(tiny, 1)
    settings = Settings(seed=7, steps=10, strength=strength, guidance=2.5, mix=0.25, scheduler=scheduler)
    drawn = generate(tiny, decoded, [settings])
    assert drawn.steps_run == 10 * strength
    assert torch.allclose(drawn.latents, plain_loop(tiny, decoded, settings), atol=1e-4)


@pytest.mark.parametrize("scheduler", CLASSES)
@pytest.mark.parametrize("steps", [1, 2, 15, 50])
def test_any_number_of_steps_ends_in_finite_latents(tiny, scheduler, steps):
    for strength in (1 / steps, 1.0):
        assert torch.isfinite(generate(tiny, conditions(tiny, 1), [Settings(steps=steps, strength=strength, scheduler=scheduler)]).latents).all()


@pytest.mark.parametrize("scheduler", CLASSES)
def test_a_solver_is_begun_anew_for_each_request(tiny, scheduler):
    decoded, settings = conditions(tiny, 1), [Settings(steps=6, strength=0.7, scheduler=scheduler)]
    first = generate(tiny, decoded, settings).latents
    generate(tiny, conditions(tiny, 1, seed=9), [Settings(steps=6, strength=1, scheduler=scheduler)])
    assert torch.equal(generate(tiny, decoded, settings).latents, first)


def test_strength_zero_returns_the_decoded_latents(tiny):
    decoded = conditions(tiny)
    drawn = generate(tiny, decoded, [Settings(strength=0)] * 3)
    assert np.array_equal(drawn.latents.numpy(), decoded.latents)
    assert (drawn.steps_run, drawn.signal) == (0, 1.0)


@pytest.mark.parametrize("scheduler", CLASSES)
def test_strength_one_ignores_the_decoded_latents(tiny, scheduler):
    decoded = conditions(tiny, 1)
    other = replace(decoded, latents=-decoded.latents)
    settings = [Settings(strength=1, steps=3, scheduler=scheduler)]
    drawn = generate(tiny, decoded, settings)
    assert drawn.signal == 0
    assert torch.equal(drawn.latents, generate(tiny, other, settings).latents)
    partly = [Settings(strength=0.7, steps=3, scheduler=scheduler)]
    assert not torch.allclose(generate(tiny, decoded, partly).latents, generate(tiny, other, partly).latents)


@pytest.mark.parametrize(("strength", "run", "time", "alpha_bar"), [(0.75, 37, 721, 0.0705), (0.8, 40, 781, 0.0435), (0.85, 42, 821, 0.0305)])
def test_fifty_steps_are_those_of_the_literature(strength, run, time, alpha_bar):
    plan = schedule(SCHEDULER, Settings(steps=50, strength=strength, scheduler="ddim"))  # method 2.5
    assert (len(plan.times), plan.times[0]) == (run, time)
    assert plan.alpha_bar == pytest.approx(alpha_bar, abs=5e-4)


def test_more_steps_than_a_solver_has_times_is_said():
    with pytest.raises(RequestError, match="unipc cannot tell 1000 steps apart; ask for fewer"):
        schedule(SCHEDULER, Settings(steps=1000, scheduler="unipc"))


@pytest.mark.parametrize(("strength", "convention"), [(1.0, "havir"), (0.9995, "brain-diffuser")])
def test_a_step_beyond_the_checkpoints_table_is_said(tiny, strength, convention):
    with pytest.raises(RequestError, match="ddim cannot tell 1000 steps apart; ask for fewer"):
        generate(tiny, conditions(tiny, 1), [Settings(steps=1000, strength=strength, scheduler="ddim", convention=convention)])
    assert schedule(SCHEDULER, Settings(steps=1000, strength=0.5, scheduler="ddim")).times[0] == 500


def test_guidance_applies_in_its_interval_only(tiny):
    decoded = conditions(tiny, 1)
    settings = Settings(seed=2, steps=8, strength=0.75, guidance=4, scheduler="ddim", guidance_start=0.3, guidance_stop=0.75)
    count = []
    hook = tiny.unet.unet.conv_out.register_forward_hook(lambda _module, given, _out: count.append(len(given[0])))
    drawn = generate(tiny, decoded, [settings]).latents
    hook.remove()
    assert count == [1, 2, 2, 2, 1, 1]  # steps 2 to 7 of 8; 3, 4 and 5 lie in [2.4, 6)
    assert torch.allclose(drawn, plain_loop(tiny, decoded, settings, guided=lambda step: step in (3, 4, 5)), atol=1e-4)
    whole = [replace(settings, guidance_start=0, guidance_stop=1)]
    assert not torch.allclose(drawn, generate(tiny, decoded, whole).latents, atol=1e-3)


@pytest.mark.parametrize("off", [Settings(steps=2, guidance=1), Settings(steps=2, guidance_stop=0)])
def test_without_guidance_one_row_a_picture_runs(tiny, off):
    count = []
    hook = tiny.unet.unet.conv_out.register_forward_hook(lambda _module, given, _out: count.append(len(given[0])))
    generate(tiny, conditions(tiny, 2), [off] * 2)
    hook.remove()
    assert set(count) == {2}


@pytest.mark.parametrize(("mix", "silent"), [(0.0, "text"), (1.0, "image")])
def test_a_flow_without_weight_is_not_run(tiny, mix, silent):
    ran = []
    flows = [(name.rpartition(".")[2], module) for name, module in tiny.unet.named_modules() if isinstance(module, Transformer2DModel)]
    layers = [(flow, layer) for flow, module in flows for layer in (module.transformer_blocks[0].attn2.to_k, module.transformer_blocks[0].ff)]
    hooks = [layer.register_forward_hook(lambda _m, _i, _o, flow=flow: ran.append(flow)) for flow, layer in layers]
    generate(tiny, conditions(tiny, 1), [Settings(steps=2, mix=mix)])
    for hook in hooks:
        hook.remove()
    assert ran
    assert silent not in ran


def test_keys_values_and_times_are_computed_once_a_request(tiny):
    calls = []
    flow = next(module for module in tiny.unet.modules() if isinstance(module, Transformer2DModel))
    watched = (flow.transformer_blocks[0].attn2.to_k, tiny.unet.unet.time_embedding)
    hooks = [module.register_forward_hook(lambda module, given, _out: calls.append((watched.index(module), len(given[0])))) for module in watched]
    generate(tiny, conditions(tiny, 3), [Settings(steps=8)] * 3)
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == [(0, 1), (0, 3), (1, 6)]  # the unconditional keys once for all pictures; all six times at once


def test_the_same_request_gives_the_same_bytes_and_the_batch_does_not_matter(tiny):
    decoded = conditions(tiny)
    settings = [Settings(seed=seed, steps=5, guidance=1 + seed, mix=seed / 5) for seed in (0, 4, 5)]
    together = generate(tiny, decoded, settings).latents
    assert torch.equal(together, generate(tiny, decoded, settings).latents)
    for row in range(3):
        alone = generate(tiny, rows(decoded, slice(row, row + 1)), settings[row : row + 1]).latents
        assert torch.allclose(together[row : row + 1], alone, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.1), (torch.bfloat16, 0.5)])
def test_half_precision_stays_near(dtype, tolerance):
    """What the demo's model loses in half precision on the CPU, printed; the latents stay float32 between the steps."""
    whole, half = weights.load(), weights.load(dtype=dtype)
    decoded, settings = conditions(whole, 2), [Settings(seed=seed, steps=6) for seed in (1, 2)]
    exact, drawn = generate(whole, decoded, settings).latents, generate(half, decoded, settings).latents
    alone = generate(half, rows(decoded, slice(0, 1)), settings[:1]).latents
    print(f"{dtype}: {(drawn - exact).abs().max():.4f} from float32, {(drawn[:1] - alone).abs().max():.4f} alone against in a batch, largest of 16x16x4")
    assert drawn.dtype == torch.float32
    assert (drawn - exact).abs().max() < tolerance
    assert (drawn[:1] - alone).abs().max() < tolerance
    pictures = half.decode_latents(drawn).astype(int)
    assert np.abs(pictures - whole.decode_latents(drawn)).mean() < 4  # of 255: no NaN, no overflow


def test_brain_diffuser_noises_one_index_before_it_denoises(tiny):
    settings = replace(CONVENTIONS["brain-diffuser"].settings, steps=50, seed=3)
    plan = schedule(SCHEDULER, settings)
    assert (len(plan.times), plan.times[0]) == (37, 721)
    assert plan.alpha_bar == pytest.approx(float(DDIMScheduler.from_config(SCHEDULER).alphas_cumprod[741]))
    few = replace(settings, steps=5, strength=0.6)  # times 801, 601, 401, 201, 1: noised to 601, denoised from 401
    decoded = conditions(tiny, 1)
    assert torch.allclose(generate(tiny, decoded, [few]).latents, plain_loop(tiny, decoded, few, noised=torch.tensor([601])), atol=1e-4)
    assert not torch.allclose(generate(tiny, decoded, [replace(few, convention="havir")]).latents, generate(tiny, decoded, [few]).latents, atol=1e-3)


def test_mindeye_runs_the_image_flow_alone_against_zeros(tiny):
    settings = replace(CONVENTIONS["mindeye"].settings, seed=3)
    assert (settings.steps, settings.scheduler, settings.strength, settings.guidance, settings.mix) == (20, "unipc", 0.85, 3.5, 0.0)
    decoded = conditions(tiny, 1)
    zeros = torch.zeros_like(tiny.empty_image), torch.zeros_like(tiny.empty_text)
    drawn = generate(tiny, decoded, [settings])
    assert drawn.steps_run == 17
    assert torch.allclose(drawn.latents, plain_loop(tiny, decoded, settings, empty=zeros), atol=1e-4)
    assert not torch.allclose(drawn.latents, generate(tiny, decoded, [replace(settings, convention="havir")]).latents, atol=1e-3)


def test_noise_and_unconditional_embeddings_can_be_given(tiny):
    decoded, settings = conditions(tiny, 2), [Settings(seed=4, steps=4)] * 2
    noise = unit_noise(tiny, 4).expand(2, -1, -1, -1).numpy()
    empty = Unconditional(tiny.empty_image.numpy(), tiny.empty_text.numpy())
    usual = generate(tiny, decoded, settings).latents
    assert torch.equal(generate(tiny, decoded, settings, noise=noise, unconditional=empty).latents, usual)
    for_each = Unconditional(*(np.repeat(value, 2, axis=0) for value in empty))
    assert torch.allclose(generate(tiny, decoded, settings, unconditional=for_each).latents, usual, atol=1e-5)
    other = Unconditional(empty.image + 1, empty.text)
    assert not torch.allclose(generate(tiny, decoded, settings, unconditional=other).latents, usual, atol=1e-3)


@pytest.mark.parametrize("strength", [0.6, 0.75, 1.0])
def test_karras_starts_where_the_strength_says_and_falls_to_the_end(tiny, strength):
    plan, even = (schedule(SCHEDULER, Settings(steps=20, strength=strength, scheduler=name)) for name in ("karras", "dpmsolver++"))
    assert len(plan.times) == len(even.times) == 20 * strength
    assert plan.times[0] == pytest.approx(999 * strength, abs=1)
    assert plan.alpha_bar == pytest.approx(even.alpha_bar, abs=2e-3)
    noise = plan.solver.sigmas.double().numpy()[plan.first :]
    assert noise[-1] == pytest.approx(float(DDIMScheduler.from_config(SCHEDULER).alphas_cumprod[0] ** -1 - 1) ** 0.5, rel=1e-4)
    levels = np.linspace(noise[0] ** (1 / 3), noise[-2] ** (1 / 3), len(noise) - 1)
    assert np.abs(noise[:-1] ** (1 / 3) - levels).max() < 0.01  # even in the third root, up to whole times
    assert torch.isfinite(generate(tiny, conditions(tiny, 1), [Settings(steps=20, strength=strength, scheduler="karras")]).latents).all()


def test_karras_follows_a_known_flow_with_fewer_steps_than_ddim():
    """Of a normal distribution with a spread of 0.2 the best denoiser, and where the flow ends, are known."""
    table = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod.double()

    def error(scheduler, steps):
        plan = schedule(SCHEDULER, Settings(steps=steps, strength=1, scheduler=scheduler))
        sample = torch.ones(1, 4, 2, 2, dtype=torch.float64)
        for index, time in enumerate(plan.times):
            signal, noise = table[time], 1 - table[time]
            sample, _ = plan.step(sample * noise**0.5 / (0.04 * signal + noise), index, sample)
        left = 1 - table[0]
        exact = ((0.04 * table[0] + left) / (0.04 * table[999] + 1 - table[999])) ** 0.5
        return float((sample - exact).abs().max())

    assert error("karras", 10) < 0.5 * error("ddim", 10)
    assert error("karras", 22) < error("ddim", 50)
