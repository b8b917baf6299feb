"""Models in memory: kept while their files stay, let go when they are replaced, and never twice at once."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace

import numpy as np

from havir_explorer import pipeline
from havir_explorer.diffuse import weights
from havir_explorer.loaded import Loaded
from havir_explorer.paths import shipped_weights, stamp


class Model:
    pass


def test_a_model_is_loaded_once_and_anew_when_a_file_is_replaced(tmp_path):
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "w"
    file.write_text("one")
    kept: Loaded[Model] = Loaded(1)
    first = kept.get("a", tmp_path, Model)
    assert kept.get("a", tmp_path, Model) is first
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").replace(file)  # of the same size
    second = kept.get("a", tmp_path, Model)
    assert second is not first


def test_the_old_copy_is_let_go_before_the_new_one_is_loaded(tmp_path):
    kept: Loaded[Model] = Loaded(1)
    alive = weakref.ref(kept.get("a", tmp_path, Model))
    seen = []

    def load() -> Model:
        gc.collect()
        seen.append(alive())
        return Model()

    (tmp_path / "w").write_text("another")
    kept.get("a", tmp_path, load)
    alive = weakref.ref(kept.get("a", tmp_path, load))
    kept.get("b", tmp_path, load)
    assert seen == [None, None], "neither a replaced nor a displaced model waits in memory"


def test_a_stamp_sees_size_time_and_place(tmp_path):
    folder = tmp_path / "vd"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "w").write_text("one")
    before = stamp(folder)
    assert stamp(folder) == before
    (folder / "part" / "w").write_text("more")
    assert stamp(folder) != before
    assert stamp(shutil.copytree(folder, tmp_path / "other")) != stamp(folder)


def test_replaced_weights_are_noticed_at_the_next_request(cache, request_, tmp_path):
    """The copy that a run holds goes on drawing; the next request draws with what is on disk."""
    folder = tmp_path / "vd"
    shutil.copytree(shipped_weights() / "versatile-diffusion", folder)
    asked = replace(request_, generator=str(folder))
    _, _, before = pipeline.models(asked)
    assert pipeline.models(asked)[2] is before
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    drawn = before.decode_latents(latents)
    pipeline.distractors(pipeline.open_dataset("demo"), asked.subject, before, 0)
    other = weights.load()
    other.vae.decoder.conv_out.bias.data += 0.5
    weights.save(other, folder)
    assert np.array_equal(before.decode_latents(latents), drawn)
    _, _, after = pipeline.models(asked)
    assert after is not before
    assert not np.array_equal(after.decode_latents(latents), drawn)
    gone = weakref.ref(before)
    del before
    gc.collect()
    assert gone() is None, "nothing in the process holds on to the old weights"


def test_a_decoder_that_was_trained_again_is_noticed(cache, request_, tmp_path):
    folder = tmp_path / "havir"
    shutil.copytree(shipped_weights() / "havir" / request_.subject, folder)
    asked = replace(request_, decoder=str(folder))
    before = pipeline.models(asked)[1]
    assert pipeline.models(asked)[1] is before
    before.save(folder)
    assert pipeline.models(asked)[1] is not before
