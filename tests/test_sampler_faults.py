"""What goes wrong while a picture is drawn is said in one sentence, stops within the step, and leaves the worker alive."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_versatile import conditions, tiny_model

from havir_explorer import pipeline
from havir_explorer.diffuse import memory
from havir_explorer.diffuse.guidance import Unconditional
from havir_explorer.diffuse.paint import _tiled, paint
from havir_explorer.diffuse.sampler import generate
from havir_explorer.errors import Cancelled, DeviceOutOfMemory, HavirError, RequestError
from havir_explorer.jobs import Worker
from havir_explorer.records import Settings

WAIT = 60  # seconds; only a broken worker needs them


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def spoilt(value, number):
    broken = value.copy()
    broken.flat[-1] = number
    return broken


@pytest.mark.parametrize("part", ["latents", "image_embeds", "text_embeds"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tiny, part, number):
    good = conditions(tiny, 2)
    with pytest.raises(RequestError, match=f"decoded {part} hold a value that is not finite"):
        generate(tiny, replace(good, **{part: spoilt(getattr(good, part), number)}), [Settings()] * 2)


@pytest.mark.parametrize(
    ("part", "cut", "wanted"),
    [
        ("image_embeds", np.s_[:, :-1], r"\(2, 4, 24\), but this Versatile Diffusion takes \(2, 5, 24\)"),
        ("text_embeds", np.s_[:, :, :-1], r"\(2, 6, 23\), but this Versatile Diffusion takes \(2, 6, 24\)"),
        ("latents", np.s_[:, :, :4], r"\(2, 4, 4, 8\), but this Versatile Diffusion takes \(2, 4, 8, 8\)"),
        ("text_embeds", np.s_[:1], r"\(1, 6, 24\), but this Versatile Diffusion takes \(2, 6, 24\)"),
    ],
)
def test_wrong_token_counts_widths_and_rows_are_refused(tiny, part, cut, wanted):
    good = conditions(tiny, 2)
    with pytest.raises(RequestError, match=f"decoded {part} have shape {wanted}"):
        generate(tiny, replace(good, **{part: getattr(good, part)[cut]}), [Settings()] * 2)


def test_given_noise_and_unconditional_embeddings_are_checked_too(tiny):
    good = conditions(tiny, 2)
    with pytest.raises(RequestError, match=r"noise have shape \(1, 4, 8, 8\), but this Versatile Diffusion takes \(2, 4, 8, 8\)"):
        generate(tiny, good, [Settings()] * 2, noise=good.latents[:1])
    with pytest.raises(RequestError, match=r"takes \(1, 5, 24\) or \(2, 5, 24\)"):
        generate(tiny, good, [Settings()] * 2, unconditional=Unconditional(good.image_embeds[:, 1:], good.text_embeds))


def test_numbers_too_large_for_the_number_format_are_said_and_not_drawn_black(tiny):
    good = conditions(tiny, 2)
    large = replace(good, image_embeds=np.stack([good.image_embeds[0], good.image_embeds[1] * 1e6]))
    assert torch.isfinite(generate(tiny, large, [Settings(steps=2)] * 2).latents).all()
    half = replace(tiny, unet=copy.deepcopy(tiny.unet).half(), empty_image=tiny.empty_image.half(), empty_text=tiny.empty_text.half())
    with pytest.raises(RequestError, match=r"row 1 of 2 drew latents that are not finite \(1 rows in all\).* in float16; .*HAVIR_DTYPE=float32"):
        generate(half, large, [Settings(steps=2)] * 2)


def test_an_empty_batch_is_refused(tiny):
    with pytest.raises(RequestError, match="one row at least: got 0 for 0 rows"):
        generate(tiny, conditions(tiny, 0), [])
    with pytest.raises(RequestError, match="got 1 for 2 rows"):
        generate(tiny, conditions(tiny, 2), [Settings()])


@pytest.mark.parametrize("change", [{"steps": 4}, {"strength": 0.5}, {"scheduler": "unipc"}, {"guidance_stop": 0.5}, {"convention": "mindeye"}])
def test_what_a_batch_must_share_is_said(tiny, change):
    with pytest.raises(RequestError, match=f"{next(iter(change))} must be the same"):
        generate(tiny, conditions(tiny, 2), [Settings(steps=3), Settings(**{"steps": 3, **change})])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": -1}, r"seed must lie in \[0, 4294967295\]; got -1"),
        ({"seed": 2**32}, "seed must lie in"),
        ({"scheduler": "unicp"}, "scheduler must be one of karras, ddim, unipc, dpmsolver.*; got 'unicp'; nearest: unipc"),
        ({"convention": "brain"}, "convention must be one of havir, brain-diffuser, mindeye; got 'brain'; nearest: brain-diffuser"),
        ({"guidance_start": 0.8, "guidance_stop": 0.2}, "guidance_start must not lie after guidance_stop; got 0.8 and 0.2"),
        ({"guidance_stop": 1.5}, r"guidance_stop must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(change, sentence):
    with pytest.raises(RequestError, match=sentence):
        Settings(**change)


def test_cancel_stops_within_the_step(tiny):
    seen = []

    def stop(done, count, clean):
        seen.append((done, count, tuple(clean.shape)))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(tiny, conditions(tiny, 1), [Settings(steps=10, strength=1)], on_step=stop)
    assert seen == [(1, 10, (1, 4, 8, 8)), (2, 10, (1, 4, 8, 8))]


OF_CPU = "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999999 bytes."


def shortage(*_arguments, said=OF_CPU, **_options):
    raise RuntimeError(said)


def test_memory_exhausted_by_one_picture_says_what_to_lower(tiny, monkeypatch):
    monkeypatch.setattr(tiny.unet, "denoise", shortage)
    with pytest.raises(DeviceOutOfMemory, match=r"one picture does not fit into the memory of the cpu \(\d+\.\d GiB free\).*float16 or bfloat16, or .*smaller"):
        generate(tiny, conditions(tiny, 1), [Settings()])
    with pytest.raises(DeviceOutOfMemory, match=r"3 pictures at once do not fit .* ask for fewer at once"):
        generate(tiny, conditions(tiny, 3), [Settings()] * 3)


def test_an_accelerators_own_shortage_is_understood():
    with pytest.raises(DeviceOutOfMemory, match="one picture does not fit"), memory.enough(torch.device("cpu"), 1):
        raise torch.OutOfMemoryError
    with pytest.raises(DeviceOutOfMemory, match="one picture does not fit"), memory.enough(torch.device("cpu"), 1):
        shortage(said="CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory.enough(torch.device("cpu"), 1):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_without_memory_for_all_fewer_are_decoded_at_once_and_one_in_tiles(tiny, monkeypatch):
    latents, told = conditions(tiny, 5).latents, []
    expected = tiny.decode_latents(latents)
    ours = type(tiny).decode_latents

    def small(model, some, batch):
        return ours(model, some, batch) if len(some) <= 2 else shortage()

    monkeypatch.setattr(type(tiny), "decode_latents", small)
    assert np.abs(paint(tiny, latents, on_notice=told.append).astype(int) - expected).max() <= 1
    assert told == ["memory ran out; going on with 2 pictures at once"]
    monkeypatch.setattr(type(tiny), "decode_latents", shortage)
    tiled = paint(tiny, latents, on_notice=told.append)
    assert tiled.shape == expected.shape
    assert any("in tiles" in sentence for sentence in told)


def test_tiles_are_smaller_than_the_picture(tiny, monkeypatch):
    """Also where the autoencoder's configuration names pictures of this size, as the published one may."""
    monkeypatch.setattr(tiny.vae, "tile_latent_min_size", 8)
    monkeypatch.setattr(tiny.vae, "tile_sample_min_size", 16)
    latents, seen = torch.from_numpy(conditions(tiny, 1).latents), []
    handle = tiny.vae.decoder.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[2:]))
    with torch.inference_mode():
        tiled = _tiled(tiny, latents)
    handle.remove()
    assert max(height * width for height, width in seen) <= 8 * 8 / 4
    assert tiled.shape == (1, tiny.side, tiny.side, 3)
    near = np.corrcoef(tiled.ravel().astype(float), tiny.decode_latents(latents).ravel().astype(float))[0, 1]
    assert near > 0.5  # each tile is normalised by itself; put together in another order they would be near 0


def test_the_batch_fits_the_free_memory(tiny, monkeypatch):
    assert memory.fitting(tiny, 100) == memory.largest("cpu") < memory.largest("cuda")
    monkeypatch.setattr(memory, "free", lambda _device: 6 * memory.picture_bytes(tiny))
    assert memory.fitting(tiny, 100) == 3
    assert memory.fitting(tiny, 2) == 2
    monkeypatch.setattr(memory, "free", lambda _device: 0)
    assert memory.fitting(tiny, 100) == 1


def test_what_torch_holds_back_on_a_gpu_counts_as_free(monkeypatch):
    known = {"mem_get_info": (1000, 8000), "memory_reserved": 5000, "memory_allocated": 2000}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert memory.free(torch.device("cuda", 0)) == 4000


def test_a_shortage_while_scoring_is_one_of_memory(request_, monkeypatch):
    generator = pipeline.models(request_)[2]
    monkeypatch.setattr(type(generator), "image_features", shortage)
    with pytest.raises(DeviceOutOfMemory, match="one picture does not fit"):
        pipeline.run(request_)


def test_the_worker_outlives_a_shortage(worker, request_, monkeypatch):
    generator = pipeline.models(request_)[2]
    with monkeypatch.context() as patch:
        patch.setattr(generator.unet, "denoise", shortage)
        job = worker.submit((request_,), lambda _event: None)
        assert job.wait(WAIT)
    assert isinstance(job.error, DeviceOutOfMemory)
    assert "one picture does not fit" in str(job.error)
    assert finishes(worker, request_)


def finishes(worker, request):
    job = worker.submit((request,), lambda _event: None)
    assert job.wait(WAIT)
    return job.state == "done"


@pytest.mark.parametrize("when", ["before the first step", "during the VAE decode"])
def test_a_job_cancelled_twice_keeps_nothing_and_the_worker_goes_on(worker, request_, monkeypatch, when):
    calls = []
    ours = pipeline.paint

    def decoding(model, latents, **options):
        calls.append(len(latents))
        if len(calls) == (1 if when == "before the first step" else 2):  # the decoded latents are painted first, then the drawn ones
            job.cancel()
            job.cancel()
        return ours(model, latents, **options)

    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "paint", decoding)
        job = worker.submit((request_,), lambda event: steps.append(event.step) if event.step else None)
        assert job.wait(WAIT)
    assert (job.state, job.results) == ("cancelled", ())
    assert sum(step.count > 0 for step in steps) == (0 if when == "before the first step" else 3)
    assert finishes(worker, request_)


def test_an_exception_in_a_step_hook_fails_the_run_with_that_cause(worker, request_):
    class Odd(Exception):
        pass

    def faulty(request, *, on_step=None):
        def hook(step):
            on_step(step)
            if step.index == 2:
                msg = "the hook fell over"
                raise Odd(msg)

        return pipeline.run(request, on_step=hook)

    with pytest.raises(Odd):
        faulty(request_, on_step=lambda _step: None)
    one = Worker(run=faulty)
    job = one.submit((request_,), lambda _event: None)
    assert job.wait(WAIT)
    assert job.state == "failed"
    assert isinstance(job.error, HavirError)
    assert isinstance(job.error.__cause__, Odd)
    one._run = pipeline.run
    assert finishes(one, request_)
    one.close()
