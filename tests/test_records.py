"""Requests are data: checked when made, equal when alike, one key each."""

import json

import numpy as np
import pytest

from havir_explorer import store
from havir_explorer.errors import MaskError, RequestError
from havir_explorer.records import Mask, Request, Settings


def test_alike_requests_are_equal_and_share_a_key():
    typed = Request(trial=np.int64(3), settings=Settings(seed=np.uint8(4), strength=1, mix=np.float32(0.5)), mask=Mask(mute=["V1"]))
    plain = Request(trial=3, settings=Settings(seed=4, strength=1.0, mix=0.5), mask=Mask(mute=("V1",)))
    assert typed == plain
    assert hash(typed) == hash(plain)
    assert typed.key == plain.key
    assert Request(trial=4).key != Request(trial=3).key


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Settings(steps=0), r"steps must lie in \[1, 1000\]; got 0"),
        (lambda: Settings(steps="20"), "steps must be a whole number; got '20'"),
        (lambda: Settings(seed=1.5), "seed must be a whole number"),
        (lambda: Settings(strength=1.2), r"strength must lie in \[0, 1\]"),
        (lambda: Settings(mix=float("nan")), r"mix must lie in \[0, 1\]"),
        (lambda: Settings(mix="a"), "mix must be a number"),
        (lambda: Request(trial=-1), "trial must be 0 or more; got -1"),
        (lambda: Request(repeats="both"), "repeats must be"),
    ],
)
def test_what_is_out_of_range_is_said(make, sentence):
    with pytest.raises(RequestError, match=sentence):
        make()


def test_masks_are_checked_too():
    with pytest.raises(MaskError, match="tuple of ROI names"):
        Mask(mute="FFA-1")
    with pytest.raises(MaskError, match="fill must be"):
        Mask(fill="zero")
    with pytest.raises(RequestError, match="fill_seed"):
        Mask(fill_seed=-1)
    with pytest.raises(RequestError, match="gain of V1"):
        Mask(gains=(("V1", 5.0),))
    assert Mask().is_empty
    assert not Mask(keep=("V1",)).is_empty


def test_a_recipe_of_before_the_solvers_still_loads(tmp_path):
    settings = {"seed": 3, "steps": 20, "strength": 0.75, "guidance": 3.0, "mix": 0.4}
    mask = {"mute": ["FFA-1"], "keep": [], "gains": [], "fill": "mean", "fill_trial": 0, "fill_seed": 0}
    old = {"dataset": "demo", "subject": "subj01", "trial": 1, "repeats": "mean", "mask": mask, "settings": settings, "generator": "demo", "decoder": ""}
    (tmp_path / "old.json").write_text(json.dumps({"havir_recipe": 1, "request": old}))
    assert store.read_recipe(tmp_path / "old.json") == Request(trial=1, mask=Mask(mute=("FFA-1",)), settings=Settings(seed=3))
    new = Request(settings=Settings(scheduler="dpmsolver++", guidance_start=0.2, guidance_stop=0.8, convention="brain-diffuser"))
    store.write_recipe(new, tmp_path / "new.json")
    assert store.read_recipe(tmp_path / "new.json") == new
    assert new.key != Request().key
