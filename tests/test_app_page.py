"""The Explorer as a cell shows it, without a browser: clicks equal traits, refusals are sentences, cancelled runs leave no trace."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
from fake_app import WAIT, Nothing, Pipeline, button, tile, until

from havir_explorer.app import Explorer
from havir_explorer.app.pace import SECONDS, Pace
from havir_explorer.records import Mask, Settings, Step


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
    assert "step 3 of 3" in "".join(seen)
    assert any("preview" in value for value in seen)
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


def test_the_page_hears_of_ten_steps_a_second_and_of_the_last_one():
    now = [100.0]
    pace = Pace(clock=lambda: now[0])
    heard = []
    for index in range(1, 101):
        heard += [index] if pace.lets(Step("diffuse", index, 100)) else []
        now[0] += 0.03
    assert heard == [*range(1, 100, 4), 100]
    assert pace.lets(Step("measure"))
    assert not pace.lets(Step("diffuse", 1, 100))


def test_previews_that_come_too_fast_are_left_out_but_not_the_last(shown, pipeline):
    pipeline.steps = 200
    seen: list[str] = []
    shown._panels.tiles.tiles[1].observe(lambda change: seen.append(change["new"]), names="value")
    began = time.monotonic()
    shown.run()
    spent = time.monotonic() - began
    previews = [value for value in seen if "preview" in value]
    assert "step 200 of 200" in previews[-1]
    assert len(previews) <= 2 + spent / SECONDS


def test_a_run_that_waits_for_another_app_says_so(shown, pipeline):
    other = Pipeline()
    other.gate.clear()
    elsewhere = Explorer(run=other, memory=Nothing())
    ahead = elsewhere.reconstruct()
    assert other.entered.wait(WAIT)
    job = shown.reconstruct()
    until(lambda: "Waiting for another reconstruction to finish." in shown._panels.run.status.value)
    assert shown.status == "running"
    other.gate.set()
    assert job.wait(WAIT)
    assert ahead.wait(WAIT)
    until(lambda: "Done: 1 picture" in shown._panels.run.status.value)
    elsewhere.close()


def test_enter_reconstructs_and_escape_cancels(shown, pipeline):
    keys = shown._panels.keys
    assert keys.scope in shown._dom_classes
    pipeline.gate.clear()
    keys._handle_custom_msg("run", [])
    assert pipeline.entered.wait(WAIT)
    until(lambda: shown.status == "running")
    keys._handle_custom_msg("cancel", [])
    assert shown.status == "cancelling"
    pipeline.gate.set()
    until(lambda: shown.status == "cancelled")
    for odd in ("", "sing", {"run": 1}, None):
        keys._handle_custom_msg(odd, [])
    assert shown.status == "cancelled"


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


def test_the_still_in_the_cell_follows_the_result(shown):
    updates = []
    shown._stills = [SimpleNamespace(update=lambda bundle, **options: updates.append(bundle))]
    shown.run()
    assert updates[-1]["image/png"].startswith(b"\x89PNG")
    assert "subj01, trial" in updates[-1]["text/plain"]
