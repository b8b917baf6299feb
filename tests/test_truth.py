"""The subjects' wiring is known, so lesions have right answers."""

import numpy as np
import pytest

from havir_explorer import evaluate, masks, pipeline
from havir_explorer.diffuse.sampler import generate
from havir_explorer.records import Mask, Request, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SUBJECTS = ("subj01", "subj02")


@pytest.fixture(scope="module", params=SUBJECTS)
def world(request):
    dataset, decoder, generator = pipeline.models(Request(subject=request.param))
    return request.param, dataset, decoder, generator, evaluate.collect(dataset, request.param, 100, generator.side)


def redraw(decoder, generator, responses, strength):
    pictures = []
    for start in range(0, len(responses), 20):
        each = [Settings(seed=start + i, strength=strength) for i in range(len(responses[start : start + 20]))]
        pictures.append(generator.decode_latents(generate(generator, decoder.decode(responses[start : start + 20]), each).latents))
    return np.concatenate(pictures)


def test_without_right_v1_to_v3_the_left_half_suffers(world):
    subject, dataset, decoder, generator, tested = world
    mask = Mask(mute=("rh.V1", "rh.V2", "rh.V3"))
    full = redraw(decoder, generator, tested.responses, 0.0)
    lesioned = redraw(decoder, generator, masks.apply(tested.responses, mask, dataset.atlas(subject)), 0.0)
    worse = (np.square(p.astype(float) - tested.stimuli).mean(axis=(1, 3)) for p in (lesioned, full))
    rise = next(worse) - next(worse)  # (n, columns)
    difference = rise[:, :32].mean(axis=1) - rise[:, 32:].mean(axis=1)
    low, high = evaluate.bootstrap(difference)
    print(f"{subject}: squared error rises more on the left by {difference.mean():.1f} [{low:.1f}, {high:.1f}], n={len(difference)}")
    assert low > 0


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_brain_is_worth_something(subject):
    conditions = ("full", "structure_only", "semantic_only", "wrong_trial", "no_brain")
    found = evaluate.evaluate("demo", subject, conditions=conditions).as_dict()["conditions"]
    for metric in ("PixCorr", "SSIM", "CLIP", "CLIP-cos"):
        for control in ("wrong_trial", "no_brain"):
            assert found["full"][metric]["ci95"][0] > found[control][metric]["ci95"][1], (metric, control, found)
    assert found["structure_only"]["PixCorr"]["mean"] > found["semantic_only"]["PixCorr"]["mean"]
    assert found["full"]["CLIP"]["mean"] >= 0.90


