"""The Explorer as an object: traits check themselves, runs answer or raise, and a request can be saved."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import traitlets
from fake_app import WAIT, Nothing, until
from PIL import Image

from havir_explorer import pipeline as house
from havir_explorer.app import Explorer
from havir_explorer.app.still import still
from havir_explorer.app.world import World
from havir_explorer.errors import Cancelled, HavirError, MaskError, OutputError, RequestError
from havir_explorer.records import Mask, Request, Settings


def test_constructing_opens_nothing_and_its_repr_is_cheap(pipeline):
    app = Explorer(run=pipeline, memory=Nothing())
    assert not app._world.is_open
    assert repr(app) == "Explorer(dataset='demo', status='idle')"
    assert not app._world.is_open
    assert app.children == ()


def test_it_starts_at_a_picture_no_decoder_was_trained_on(app, demo):
    assert app.subject == "subj01"
    assert demo.trials("subj01").loc[app.trial, "shared"]
    assert app.mask.is_empty


@pytest.mark.parametrize(
    ("name", "value", "error", "sentence"),
    [
        ("subject", "subj09", RequestError, "no subject 'subj09'; nearest: subj0"),
        ("trial", 10**6, RequestError, "has trials 0 to "),
        ("mask", Mask(mute=("FFA1",)), MaskError, "no ROI is called 'FFA1'; nearest: FFA-1"),
        ("mask", Mask(mute=("nsdgeneral", "streams", "RSC", "aTL-faces")), MaskError, "leaves none of the"),
        ("strength", 1.5, RequestError, r"strength must lie in \[0, 1\]; got 1.5"),
        ("mix", -0.1, RequestError, r"mix must lie in \[0, 1\]"),
        ("steps", 0, RequestError, r"steps must lie in \[1, 1000\]; got 0"),
        ("seed", -1, RequestError, "seed must lie in"),
        ("seed", 0.5, traitlets.TraitError, "expected an int"),
        ("guidance", 31.0, RequestError, r"guidance must lie in \[1, 30\]"),
        ("repeats", "all", traitlets.TraitError, "repeats"),
    ],
)
def test_a_value_out_of_range_is_refused_in_a_sentence_and_nothing_changes(app, name, value, error, sentence):
    before = app.request
    with pytest.raises(error, match=sentence):
        setattr(app, name, value)
    assert app.request == before


def test_the_cortex_is_asked_for_on_the_mesh_that_is_drawn(app, monkeypatch):
    asked = []
    monkeypatch.setattr(type(app._world.open()), "surface", lambda self, *what: asked.append(what))
    app._world.surface("subj02")
    assert asked == [("subj02", "fsaverage5")]


def test_numpy_numbers_are_numbers(app):
    app.trial, app.seed = np.int64(3), np.uint32(7)
    assert app.request.trial == 3
    assert type(app.request.settings.seed) is int
    assert len(app.request.key) == 32


def test_run_returns_both_pictures_at_one_seed(app, pipeline):
    app.seed, app.mask = 5, Mask(mute=("FFA-1",))
    full, masked = app.run()
    assert full.request.mask.is_empty
    assert masked.request == app.request
    assert full.request.settings == masked.request.settings == Settings(seed=5)
    assert (app.baseline, app.ablated, app.result) == (full, masked, masked)
    assert app.status == "done"
    app.mask = Mask()
    assert len(app.run()) == 1
    assert app.ablated is None


def test_run_raises_what_went_wrong_and_the_next_one_works(app, pipeline):
    pipeline.fault = RequestError("subj01 has no such thing")
    with pytest.raises(RequestError, match="no such thing"):
        app.run()
    assert app.status == "failed"
    assert app.error == "subj01 has no such thing"
    pipeline.fault = IndexError("list index out of range")
    with pytest.raises(HavirError, match="a fault of this package"):
        app.run()
    pipeline.fault = None
    app.run()
    assert app.status == "done"
    assert app.error == ""


def test_a_run_that_is_cancelled_says_so(app, pipeline):
    pipeline.gate.clear()
    threading.Thread(target=lambda: (pipeline.entered.wait(WAIT), app.cancel(), pipeline.gate.set())).start()
    with pytest.raises(Cancelled):
        app.run()
    assert app.status == "cancelled"
    assert app.result is None


def test_results_and_status_cannot_be_set_by_hand(app):
    for name in ("status", "result", "baseline", "ablated", "dataset"):
        with pytest.raises(traitlets.TraitError):
            setattr(app, name, None)


def test_another_subject_keeps_the_picture_and_drops_a_mask_it_cannot_have(app, demo, monkeypatch):
    ids = demo.trials("subj01")["nsd_id"]
    shared = demo.trials("subj01").query("shared").drop_duplicates("nsd_id")
    app.trial, app.mask = int(shared.index[4]), Mask(mute=("FFA-1",))
    app.subject = "subj02"
    assert demo.trials("subj02").loc[app.trial, "nsd_id"] == ids[shared.index[4]]
    assert app.mask == Mask(mute=("FFA-1",))
    real = World.atlas

    def without_faces(self, subject):
        atlas = real(self, subject)
        return type(atlas)(tuple(r for r in atlas.rois if r.name != "FFA-1"), atlas.right)

    monkeypatch.setattr(World, "atlas", without_faces)
    app.subject = "subj01"
    assert app.mask.is_empty
    assert "does not fit subj01" in app.error


def test_another_subject_that_lacks_the_trial_a_mask_fills_from_drops_the_mask(app, monkeypatch):
    app.mask = Mask(mute=("FFA-1",), fill="trial", fill_trial=11)
    real = World.check_trial

    def shorter(self, subject, trial):
        if (subject, trial) == ("subj02", 11):
            msg = "subj02 has trials 0 to 10; got 11"
            raise RequestError(msg)
        real(self, subject, trial)

    monkeypatch.setattr(World, "check_trial", shorter)
    app.subject = "subj02"
    assert app.mask.is_empty
    assert "does not fit subj02: subj02 has trials 0 to 10" in app.error


def test_showing_the_app_or_a_refusal_does_not_stop_a_run(app, pipeline, monkeypatch):
    monkeypatch.setattr(World, "fed", lambda self, request, branch: 1 / 0)  # no weights here: the map's turn comes after the controls'
    pipeline.gate.clear()
    job = app.reconstruct()
    assert pipeline.entered.wait(WAIT)
    until(lambda: app.status == "running")
    app._ipython_display_()
    until(lambda: "ZeroDivisionError" in app.error)
    assert app.status == "running"
    for name, value in (("trial", 10**6), ("subject", "subj09")):
        app.ask(name, value)
        assert app.error
        assert app.status == "running"
    pipeline.gate.set()
    assert job.wait(WAIT)
    assert job.state == "done"


def test_another_subject_cancels_the_run_for_the_one_before(app, pipeline):
    pipeline.gate.clear()
    job = app.reconstruct()
    assert pipeline.entered.wait(WAIT)
    app.subject = "subj02"
    pipeline.gate.set()
    assert job.wait(WAIT)
    assert job.state == "cancelled"


def test_save_and_load_restore_the_request(app, pipeline, tmp_path):
    with pytest.raises(RequestError, match="no picture to save yet"):
        app.save(tmp_path / "r.png")
    app.trial, app.seed, app.mask, app.repeats = 7, 3, Mask(mute=("PPA",)), "single"
    app.save(tmp_path / "request.json")
    app.run()
    app.save(tmp_path / "r.png")
    for name in ("request.json", "r.png", "r.json"):
        again = Explorer.load(tmp_path / name)
        assert again.request == app.request
    with pytest.raises(OutputError, match="make the folder first"):
        app.save(tmp_path / "absent" / "r.png")


def test_the_still_shows_three_labelled_pictures(app, tmp_path):
    app.mask = Mask(mute=("FFA-1",))
    full, masked = app.run()
    path = tmp_path / "still.png"
    path.write_bytes(still(full, masked))
    with Image.open(path) as sheet:
        assert sheet.size[0] > 640
        colours = {c for _, c in sheet.getcolors(10**6)}
    assert len(colours) > 1000


def test_a_long_picture_is_announced_before_it_begins(pipeline, monkeypatch):
    monkeypatch.setattr(house, "cost", lambda request: type("Said", (), {"is_long": True, "__str__": lambda _: f"costs {request.settings.steps} steps"})())
    app = Explorer(run=pipeline, memory=Nothing(), request=Request(generator="/published"))
    app.run()
    assert app.error == "costs 20 steps; Cancel stops it within one step"
    app.close()


def test_a_generator_that_is_not_there_costs_nothing_to_ask(pipeline):
    app = Explorer(run=pipeline, memory=Nothing(), request=Request(generator="/nowhere"))
    app.run()
    assert not app.error
    app.close()
