"""Many requests drawn together are the pictures of single runs, arrive as they finish, and survive memory and cancelling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_versatile import watched

from havir_explorer import batch, pipeline
from havir_explorer.batch import run_many
from havir_explorer.errors import Cancelled, DeviceOutOfMemory
from havir_explorer.records import Mask


@pytest.fixture(scope="module")
def requests(request_):
    masks = (Mask(), Mask(mute=("FFA-1",)), Mask(mute=("V1",)), Mask(keep=("V1", "V2")))
    return [replace(request_, mask=mask, settings=replace(request_.settings, seed=seed)) for seed, mask in enumerate(masks)]


def test_each_result_is_that_of_a_single_run(requests, monkeypatch):
    drawn, ours = {}, batch.generate

    def kept(model, decoded, settings, **options):
        done = ours(model, decoded, settings, **options)
        drawn.setdefault(len(settings), []).append(done.latents)
        return done

    monkeypatch.setattr(batch, "generate", kept)
    monkeypatch.setattr(pipeline, "generate", kept)
    together = run_many(requests)
    alone = [pipeline.run(request) for request in requests]
    assert torch.allclose(drawn[4][0], torch.cat(drawn[1]), atol=1e-4)
    print(f"largest difference of latents {(drawn[4][0] - torch.cat(drawn[1])).abs().max():.1e}")
    for one, other in zip(together, alone, strict=True):
        assert one.request == other.request
        assert (one.kind, one.trained_on, one.steps_run, one.signal) == (other.kind, other.trained_on, other.steps_run, other.signal)
        assert np.abs(one.picture.astype(int) - other.picture).max() <= 1
        assert np.array_equal(one.stimulus, other.stimulus)
        assert [s.name for s in one.scores] == [s.name for s in other.scores]
        assert np.allclose([s.value for s in one.scores], [s.value for s in other.scores], atol=0.02)


def test_equal_structures_are_painted_once(requests, monkeypatch):
    painted, ours = [], batch.paint
    monkeypatch.setattr(batch, "paint", lambda model, latents, **options: (painted.append(len(latents)), ours(model, latents, **options))[1])
    found = run_many(requests)  # the second mutes semantic voxels alone
    assert painted == [3, 4]
    assert np.array_equal(found[0].structure, found[1].structure)
    assert len({result.structure.tobytes() for result in found}) == 3


def test_only_what_shares_models_and_schedule_is_drawn_together(requests, monkeypatch):
    batches = []
    monkeypatch.setattr(batch, "generate", watched(batch.generate, batches))
    longer = replace(requests[0], settings=replace(requests[0].settings, steps=2))
    order, mixed = [], [requests[0], longer, requests[1], requests[2]]
    results = run_many(mixed, lambda place, result: order.append((place, result.request)), batch=2)
    assert [(settings[0].steps, len(settings)) for settings in batches] == [(4, 2), (4, 1), (2, 1)]
    assert order == [(0, mixed[0]), (2, mixed[2]), (3, mixed[3]), (1, mixed[1])]
    assert [result.request for result in results] == mixed
    assert run_many([]) == ()


def test_out_of_memory_goes_on_with_half_and_says_so(requests, monkeypatch):
    batches, told = [], []
    monkeypatch.setattr(batch, "generate", watched(batch.generate, batches, lambda: len(batches[-1]) == 1))
    results = run_many(requests[:3], on_notice=told.append)
    assert [len(settings) for settings in batches] == [3, 1, 1, 1]
    assert told == ["memory ran out; going on with 1 picture at once"]
    assert [result.request for result in results] == requests[:3]


def test_when_not_even_one_fits_it_is_said_and_what_is_finished_stays(requests, monkeypatch):
    finished, batches = [], []
    monkeypatch.setattr(batch, "generate", watched(batch.generate, batches, lambda: len(batches) == 1))
    with pytest.raises(DeviceOutOfMemory, match="1 pictures do not fit"):
        run_many(requests, lambda place, _result: finished.append(place), batch=2)
    assert finished == [0, 1]
    assert [len(settings) for settings in batches] == [2, 2, 1]


def test_cancel_leaves_the_finished_ones(requests):
    finished, steps = [], []

    def stop(step):
        steps.append(step)
        if finished and step.count:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_many(requests, lambda place, result: finished.append((place, result)), on_step=stop, batch=2)
    assert [place for place, _ in finished] == [0, 1]
    assert all(result.picture.shape == (64, 64, 3) for _, result in finished)
    assert steps[-1].index == 1  # within one step
