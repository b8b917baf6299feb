"""The Explorer without a browser: traits equal clicks, refusals are sentences, cancelled runs leave no trace, and a still stays."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import traitlets
from PIL import Image

from havir_explorer.app import Explorer
from havir_explorer.app.still import still
from havir_explorer.app.world import Fed, World
from havir_explorer.errors import Cancelled, HavirError, MaskError, OutputError, RequestError
from havir_explorer.records import Mask, Reconstruction, Request, Score, Settings, Step

WAIT = 60  # seconds; only a broken app, or a very busy machine, needs them


def drawn(request: Request) -> Reconstruction:
    rng = np.random.default_rng([request.settings.seed, request.trial, len(request.mask.mute)])
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    scores = (Score("PixCorr", 0.4 - 0.1 * len(request.mask.mute), 0.02, True, "64 px"), Score("CLIP", 0.9, 0.5, True, "two-way"))
    return Reconstruction(request, *pictures, "generated", True, False, scores, (), 15, 0.4)


class Pipeline:
    """Draws at once, or waits before each step while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.asked: list[Request] = []
        self.fault: Exception | None = None

    def __call__(self, request, *, on_step=None):
        self.asked.append(request)
        for index in (1, 2, 3):
            self.entered.set()
            assert self.gate.wait(WAIT)
            on_step(Step("diffuse", index, 3, np.full((16, 16, 3), 40 * index, np.uint8)))
        if self.fault is not None:
            raise self.fault
        return drawn(request)


class Nothing:
    def get(self, request):
        return None

    def put(self, result):
        pass


@pytest.fixture
def pipeline():
    return Pipeline()


@pytest.fixture
def app(demo, pipeline):
    app = Explorer(run=pipeline, memory=Nothing())
    yield app
    pipeline.gate.set()
    app.close()


@pytest.fixture
def shown(app, demo, monkeypatch):
    """The app as a cell shows it, with a made-up contribution map so that no weights are needed."""
    import pandas as pd

    surface = demo.surface("subj01")
    columns = {"roi": ["V1v", "FFA-1"], "file": ["prf-visualrois", "floc-faces"], "hemisphere": "both", "n_voxels": [9, 8], "n_in_branch": [9, 8]}
    table = pd.DataFrame({**columns, "mean": [0.8, 0.3], "sem": [0.01, np.nan], "noise_ceiling": [40.0, 30.0]})
    fed = {b: Fed(np.full(surface.weights.shape[0], v, np.float32), table) for b, v in (("structural", 0.2), ("semantic", 0.9))}
    monkeypatch.setattr(World, "fed", lambda self, request, branch: fed[branch])
    app._ipython_display_()
    until(lambda: app._panels.branch._table.value)
    return app


def until(true) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def button(app, name: str):
    return {"run": app._panels.run.run, "cancel": app._panels.run.cancel}[name]


def tile(app, place: int) -> str:
    return app._panels.tiles.tiles[place].value


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


def test_clicking_equals_setting(shown):
    panels = shown._panels
    panels.mask.toggles["FFA-1"].value = "mute"
    assert shown.mask == Mask(mute=("FFA-1",))
    panels.mask.side.value = "rh."
    assert panels.mask.toggles["FFA-1"].value == "keep"
    panels.mask.toggles["V1"].value = "solo"
    assert shown.mask == Mask(mute=("FFA-1",), keep=("rh.V1",))
    shown.mask = Mask(mute=("rh.PPA",))
    assert panels.mask.toggles["PPA"].value == "mute"
    panels.mask.clear.click()
    assert shown.mask.is_empty
    panels.settings.strength.value = 0.5
    panels.settings.fields["steps"].value = 30
    assert (shown.strength, shown.steps) == (0.5, 30)
    assert "<b>15 of 30</b> steps will run" in panels.settings._readout.value
    shown.mix = 0.9
    assert panels.settings.mix.value == 0.9
    seed = shown.seed
    panels.settings.reroll.click()
    assert shown.seed != seed
    assert panels.settings.seed.value == shown.seed
    panels.settings.reset.click()
    assert (shown.strength, shown.steps, shown.mix) == (Settings.strength, Settings.steps, Settings.mix)
    shown.trial = 3
    assert panels.picker.number.value == 3
    panels.picker.repeats.value = "single"
    assert shown.repeats == "single"


def test_thumbnails_choose_trials_page_by_page(shown, demo):
    picker = shown._panels.picker
    shared = demo.trials("subj01").query("shared").drop_duplicates("nsd_id")
    picker.thumbs[2].click()
    assert shown.trial == shared.index[2]
    assert "chosen" in picker.thumbs[2]._dom_classes
    picker.next.click()
    picker.thumbs[1].click()
    assert shown.trial == shared.index[22]
    assert sum("chosen" in t._dom_classes for t in picker.thumbs) == 1
    picker.previous.click()
    picker.previous.click()
    assert picker.thumbs[-1].description == ""  # the last page is not full: 100 pictures on pages of 21


def test_a_refused_control_goes_back_and_the_app_says_why(shown):
    panels = shown._panels
    shown.mask = Mask(keep=("V1",))
    shown.ask("mask", Mask(keep=("V1",), mute=("V1",)))
    assert shown.mask == Mask(keep=("V1",))
    assert "leaves none" in shown.error
    assert "leaves none" in panels.run.message.value
    assert panels.mask.toggles["V1"].value == "solo"
    shown.ask("seed", 3)
    assert panels.run.message.value == ""


def test_previews_then_pictures_with_labels_scores_and_words(shown, pipeline):
    shown.mask = Mask(mute=("FFA-1",))
    assert "Press Reconstruct" in tile(shown, 1)
    pipeline.gate.clear()
    button(shown, "run").click()
    until(lambda: shown.status == "running" and not button(shown, "cancel").disabled)
    seen: list[str] = []
    shown._panels.tiles.tiles[1].observe(lambda change: seen.append(change["new"]), names="value")
    pipeline.gate.set()
    until(lambda: shown.status == "done")
    assert [f"step {k} of 3" in "".join(seen) for k in (1, 2, 3)] == [True] * 3
    assert button(shown, "cancel").disabled
    for place in (1, 2):
        assert "generated" in tile(shown, place)
        assert "synthetic" in tile(shown, place)
        assert ' alt="' in tile(shown, place)
    assert "synthetic stimulus" in tile(shown, 0)
    scores = shown._panels.tiles.scores.value
    assert "<td>0.02</td><td>0.40</td><td>0.30</td><td>−0.10</td>" in scores
    assert 'role="status"' in shown._panels.run.status.value
    assert "Done: 2 pictures" in shown._panels.run.status.value


def test_cancel_takes_the_preview_away_and_brings_the_last_pictures_back(shown, pipeline):
    shown.run()
    finished = tile(shown, 1)
    pipeline.gate.clear()
    pipeline.entered.clear()
    shown.seed = 9
    button(shown, "run").click()
    assert pipeline.entered.wait(WAIT)
    until(lambda: shown.status == "running")
    button(shown, "cancel").click()
    assert shown.status == "cancelling"
    pipeline.gate.set()
    until(lambda: shown.status == "cancelled")
    assert "preview" not in tile(shown, 1)
    assert finished.split('src="')[1].split('"')[0] in tile(shown, 1)
    assert "Cancelled" in shown._panels.run.status.value
    assert shown.error == ""


def test_pictures_of_other_settings_are_dimmed_and_those_of_another_trial_go(shown):
    shown.run()
    shown.seed = 4
    assert "stale" in tile(shown, 1)
    assert "other settings" in tile(shown, 1)
    shown.seed = 0
    assert "stale" not in tile(shown, 1)
    shown.trial = 8
    assert "<img" not in tile(shown, 1)
    assert shown.baseline is not None


def test_another_trial_cancels_the_run_for_the_one_before(shown, pipeline):
    pipeline.gate.clear()
    job = shown.reconstruct()
    assert pipeline.entered.wait(WAIT)
    until(lambda: shown.status == "running")
    shown.trial = 5
    pipeline.gate.set()
    assert job.wait(WAIT)
    assert job.state == "cancelled"


def test_the_app_says_which_branch_a_mask_reaches(shown):
    reach = shown._panels.branch._reach
    assert "No mask" in reach.value
    shown.mask = Mask(mute=("FFA-1",))
    assert "Semantic Extractor only" in reach.value
    shown.mask = Mask(mute=("V1",))
    assert "Structural Generator only" in reach.value
    shown.mask = Mask(mute=("V1", "FFA-1"))
    assert "both branches" in reach.value


def test_the_reach_goes_by_the_voxels_that_the_loaded_decoder_reads(shown, demo, monkeypatch):
    shown.mask = Mask(mute=("FFA-1",))
    faces = demo.atlas("subj01").voxels("FFA-1")
    monkeypatch.setattr("havir_explorer.pipeline.models", lambda request: (demo, SimpleNamespace(spatial=faces, semantic=~faces), None))
    monkeypatch.setattr("havir_explorer.attribute.contribution", lambda decoder, branch: SimpleNamespace(values=np.zeros(len(faces), np.float32)))
    monkeypatch.setattr("havir_explorer.attribute.roi_table", lambda *_: None)
    shown._world._measure(shown.request, "structural")
    shown._paint()
    assert "Structural Generator only" in shown._panels.branch._reach.value
    shown.mask = Mask(mute=("V1",))
    assert "Semantic Extractor only" in shown._panels.branch._reach.value


def test_the_branch_switch_paints_the_cortex_anew_in_place(shown):
    cortex = shown._panels.branch._cortex
    before = np.array(cortex.figure.data[0].vertexcolor)
    shown._panels.branch.switch.value = "semantic"
    assert shown.branch == "semantic"
    assert shown._panels.branch._cortex is cortex
    assert not np.array_equal(before, np.array(cortex.figure.data[0].vertexcolor))
    assert "Semantic Extractor" in cortex.figure.layout.title.text
    assert "nan" not in shown._panels.branch._table.value
    shown.branch = "structural"
    assert np.array_equal(before, np.array(cortex.figure.data[0].vertexcolor))


def test_a_fault_in_a_callback_is_shown_not_lost(shown, monkeypatch):
    monkeypatch.setattr(type(shown), "reconstruct", lambda self: 1 / 0)
    button(shown, "run").click()
    assert "ZeroDivisionError" in shown.error
    assert "a fault of the app" in shown._panels.run.message.value


def test_words_from_files_cannot_become_markup(shown, demo, monkeypatch):
    monkeypatch.setattr(type(demo), "captions", lambda self, nsd_id: ("<script>alert(1)</script>",))
    shown.trial = 6
    assert "<script>" not in shown._panels.picker._about.value
    assert "&lt;script&gt;" in shown._panels.picker._about.value


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


def test_the_still_in_the_cell_follows_the_result(shown):
    updates = []
    shown._stills = [SimpleNamespace(update=lambda bundle, **options: updates.append(bundle))]
    shown.run()
    assert updates[-1]["image/png"].startswith(b"\x89PNG")
    assert "subj01, trial" in updates[-1]["text/plain"]
