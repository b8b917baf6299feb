"""The subjects' wiring is known, so lesions have right answers."""

import dataclasses

import numpy as np
import pytest

from havir_explorer import evaluate, masks, pipeline
from havir_explorer.data.demo import scenes
from havir_explorer.diffuse.sampler import generate
from havir_explorer.records import Mask, Request, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SUBJECTS = ("subj01", "subj02")


@pytest.fixture(scope="module", params=SUBJECTS)
def world(request):
    dataset, decoder, generator = pipeline.models(Request(subject=request.param))
    tested = evaluate.collect(dataset, request.param, 100)
    tested = dataclasses.replace(tested, stimuli=pipeline.at_side(tested.stimuli, generator.side))
    return request.param, dataset, decoder, generator, tested, evaluate.mean_responses(dataset, request.param, tested.nsd_ids)


def redraw(decoder, generator, responses, strength, first_seed=0):
    pictures = []
    for start in range(0, len(responses), 20):
        each = [Settings(seed=first_seed + start + i, strength=strength) for i in range(len(responses[start : start + 20]))]
        pictures.append(generator.decode_latents(generate(generator, decoder.decode(responses[start : start + 20]), each).latents))
    return np.concatenate(pictures)


def test_without_right_v1_to_v3_the_left_half_suffers(world):
    subject, dataset, decoder, generator, tested, measured = world
    mask = Mask(mute=("rh.V1", "rh.V2", "rh.V3"))
    full = redraw(decoder, generator, measured, 0.0)
    lesioned = redraw(decoder, generator, masks.apply(measured, mask, dataset.atlas(subject)), 0.0)
    worse = (np.square(p.astype(float) - tested.stimuli).mean(axis=(1, 3)) for p in (lesioned, full))
    rise = next(worse) - next(worse)  # (n, columns)
    difference = rise[:, :32].mean(axis=1) - rise[:, 32:].mean(axis=1)
    low, high = evaluate.bootstrap(difference)
    print(f"{subject}: squared error rises more on the left by {difference.mean():.1f} [{low:.1f}, {high:.1f}], n={len(difference)}")
    assert low > 0


def test_without_the_face_areas_faces_are_lost(world):
    subject, dataset, decoder, generator, tested, measured = world
    shown = [any(thing.kind == "face" for thing in scenes.scene(int(nsd_id)).things) for nsd_id in tested.nsd_ids]
    responses, atlas = measured[shown], dataset.atlas(subject)
    words = generator.text_features([f"a face {place}" for place in scenes.PLACES.values()]).mean(axis=0)

    def likeness(lesioned):
        """To "a face", (n,): the mean over four seeds of every scene."""
        drawn = (redraw(decoder, generator, lesioned, Settings().strength, 1000 * seed) for seed in range(4))
        return np.mean([generator.image_features(pictures) @ words for pictures in drawn], axis=0)

    without = likeness(masks.apply(responses, Mask(mute=("floc-faces",)), atlas))
    controls = [masks.replace(responses, masks.control("floc-faces", atlas, decoder.semantic, seed)) for seed in range(3)]
    lost = np.mean([likeness(control) for control in controls], axis=0) - without
    low, high = evaluate.bootstrap(lost)
    print(f"{subject}: likeness to a face falls {lost.mean():.3f} [{low:.3f}, {high:.3f}] further than without as many random voxels, n={len(lost)}")
    assert len(lost) >= 20
    assert low > 0


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_brain_is_worth_something(subject):
    conditions = ("full", "structure_only", "semantic_only", "wrong_trial", "no_brain")
    found = evaluate.evaluate("demo", subject, conditions=conditions).as_dict()["conditions"]
    for metric in ("PixCorr", "SSIM", "CLIP", "CLIP-cos"):
        for control in ("wrong_trial", "no_brain"):
            assert found["full"][metric]["ci95"][0] > found[control][metric]["ci95"][1], (metric, control, found)
    assert found["structure_only"]["PixCorr"]["mean"] > found["semantic_only"]["PixCorr"]["mean"]
    assert found["semantic_only"]["CLIP"]["mean"] > found["structure_only"]["CLIP"]["mean"]
    assert found["full"]["CLIP"]["mean"] >= 0.90


