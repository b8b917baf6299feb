"""The target store: the same numbers as encoding in memory, once a picture, whatever happens on the way."""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
from small_targets import BATCH, BLANK, IDS, SHARD, Counting, content, make, plan
from small_world import SmallEncoder, SmallWorld

from havir_explorer.decode import target_making, target_store
from havir_explorer.decode.target_store import MANIFEST, TargetStore
from havir_explorer.decode.targets import Kind, Rows, TargetSource, build
from havir_explorer.errors import Cancelled, DataInvalid, DataMissing, OutputError, RequestError

FILES = ("shard00000.npy", "shard00001.npy", "shard00002.npy", "shard00003.npy")
HALF = 2**-11
"""Relative error of rounding to float16."""


def test_the_store_holds_what_encoding_in_memory_gives(tmp_path: Path) -> None:
    store, _ = make(tmp_path, IDS)
    source: TargetSource = store
    expected = build(SmallWorld(), IDS, SmallEncoder())
    assert source.nsd_ids.tolist() == IDS.tolist()
    assert (source.shapes, source.generator, store.caption_target, store.image_source) == (expected.shapes, BLANK.generator, "mean", "stimulus")
    places = np.array([16, 0, 7, 7, 3])
    for held, true in zip(TargetStore.open(tmp_path).rows(places), expected.rows(places), strict=True):
        assert held.dtype == np.float16
        np.testing.assert_allclose(held, true, rtol=HALF, atol=1e-7)


def test_one_target_alone_is_the_column_of_the_rows(tmp_path: Path) -> None:
    store, _ = make(tmp_path, IDS)
    places = np.array([16, 0, 7, 7, 3])
    for source in (store, build(SmallWorld(), IDS, SmallEncoder())):
        rows = source.rows(places)
        for kind in get_args(Kind):
            np.testing.assert_array_equal(source.column(kind, places), getattr(rows, kind))


def test_targets_of_some_pictures_are_read_into_memory(tmp_path: Path) -> None:
    read = make(tmp_path, IDS)[0].read(np.array([12, 5, 12]))
    expected = build(SmallWorld(), np.array([5, 12]), SmallEncoder())
    assert (read.nsd_ids.tolist(), read.latents.dtype, read.generator) == ([5, 12], np.float32, BLANK.generator)
    np.testing.assert_allclose(read.image_embeds, expected.image_embeds, rtol=HALF)
    with pytest.raises(RequestError, match=r"lacks 2 of 3 pictures, the first 1; add them with: havir targets"):
        TargetStore.open(tmp_path).read(np.array([1, 5, 77]))


def test_only_the_files_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, IDS)
    opened, read = [], target_store.read_shard
    monkeypatch.setattr(target_store, "read_shard", lambda folder, manifest, number: opened.append(number) or read(folder, manifest, number))
    store = TargetStore.open(tmp_path)
    for places in ([6, 5], [9, 16, 7]):
        store.rows(np.array(places))
    assert opened == [1, 3]


def test_few_files_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, IDS)
    monkeypatch.setattr(target_store, "OPEN", 2)
    store, expected = TargetStore.open(tmp_path), build(SmallWorld(), IDS, SmallEncoder())
    places = np.array([16, 0, 7, 11, 3, 16])
    np.testing.assert_allclose(store.rows(places).latents, expected.rows(places).latents, rtol=HALF, atol=1e-7)
    assert len([file for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path))]) == 2


def test_a_store_crosses_to_another_process_as_its_place(tmp_path: Path) -> None:
    store, _ = make(tmp_path, IDS)
    store.rows(np.arange(3))
    packed = pickle.dumps(store)
    assert len(packed) < 4000
    np.testing.assert_array_equal(pickle.loads(packed).rows(np.array([4])).latents, store.rows(np.array([4])).latents)  # noqa: S301 - our own bytes


def test_no_picture_is_encoded_twice(tmp_path: Path) -> None:
    _, first = make(tmp_path, np.array([7, 3, 5, 7, 4, 6, 3]))
    before = content(tmp_path)
    store, second = make(tmp_path, IDS)
    assert first == [3, 4, 5, 6, 7]
    assert second == list(range(8, 20))
    assert store.nsd_ids.tolist() == IDS.tolist()
    assert content(tmp_path)[FILES[0]] == before[FILES[0]]
    _, third = make(tmp_path, np.array([9, 4]))
    assert third == []


def test_pictures_that_lie_between_are_appended(tmp_path: Path) -> None:
    make(tmp_path, np.array([2, 10, 40]))
    store, encoded = make(tmp_path, np.array([1, 10, 30, 50]))
    assert encoded == [1, 30, 50]
    assert store.nsd_ids.tolist() == [1, 2, 10, 30, 40, 50]
    expected = build(SmallWorld(), store.nsd_ids, SmallEncoder())
    np.testing.assert_allclose(store.rows(np.arange(6)).latents, expected.latents, rtol=HALF, atol=1e-7)


def killed(folder: Path, *events: int) -> None:
    """Make the store once for every event, killed at it."""
    subprocess.run([sys.executable, Path(__file__).with_name("killed.py"), "targets", folder, *map(str, events)], check=True, timeout=120)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    expected = make(tmp_path / "whole", IDS)[0].folder
    killed(tmp_path / "cut", 1, 2, 3, *random.Random(4).choices(range(4, 7), k=2))  # in the first file, its rename, its manifest's; then in the next two
    left = content(tmp_path / "cut")
    assert {FILES[0], FILES[1]} <= left.keys()
    assert FILES[3] not in left
    store, encoded = make(tmp_path / "cut", IDS)
    assert encoded == IDS[2 * SHARD :].tolist(), "what was finished stays"
    assert store.nsd_ids.tolist() == IDS.tolist()
    assert content(tmp_path / "cut") == content(expected)


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "other shape"])
def test_a_damaged_file_is_found_and_only_it_is_made_again(tmp_path: Path, harm: str) -> None:
    make(tmp_path, IDS)
    before = content(tmp_path)
    file, whole = tmp_path / FILES[1], before[FILES[1]]
    if harm == "gone":
        file.unlink()
    elif harm == "other shape":
        np.save(file, np.zeros((3, 3), np.int16))
    else:
        file.write_bytes(whole[: len(whole) // 2] if harm == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    store = TargetStore.open(tmp_path)
    store.rows(np.arange(SHARD))
    with pytest.raises(DataInvalid, match=r"target store is damaged: .*shard00001\.npy.*mend it with the havir targets command that made it"):
        store.rows(np.arange(SHARD + 1))
    assert plan(tmp_path, IDS[:3]).damaged == (), "a file whose pictures nobody asked for is not read"
    assert plan(tmp_path, IDS[-4:]).damaged == ()
    assert plan(tmp_path, IDS[SHARD : SHARD + 1]).damaged == (1,)
    assert make(tmp_path, IDS)[1] == IDS[SHARD : 2 * SHARD].tolist()
    assert content(tmp_path) == before


def test_a_mend_that_is_killed_still_mends(tmp_path: Path) -> None:
    make(tmp_path, IDS)
    before = content(tmp_path)
    (tmp_path / FILES[2]).write_bytes(b"")
    killed(tmp_path, 1, 2)
    make(tmp_path, IDS)
    assert content(tmp_path) == before


def test_replaced_captions_and_pictures_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, IDS)
    world = SmallWorld()
    plain = world.captions
    monkeypatch.setattr(world, "captions", lambda nsd_id: ("a longer one than before",) if nsd_id == 4 else plain(nsd_id))
    store, encoded = make(tmp_path, IDS, world)
    assert encoded == IDS[:SHARD].tolist()
    assert store.rows(np.array([1])).text_embeds[0, 0, 0] == 5
    assert make(tmp_path, IDS, SmallWorld(seed=9))[1] == IDS.tolist()


def test_targets_outlive_the_pictures_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, IDS)
    bare = SmallWorld()
    monkeypatch.setattr(bare, "captions", lambda _: ())
    assert make(tmp_path, IDS, bare)[1] == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"generator": (9.0, *BLANK.generator[1:]), "generator_name": "other"}, "with the generator small, whose autoencoder or CLIP are not those of other"),
        ({"caption_target": "first"}, "with captions 'mean', and 'first' is asked for"),
        ({"image_source": "synthesised"}, "with images 'stimulus', and 'synthesised' is asked for"),
        ({"dataset": "NSD"}, "for the data set 'small', and 'NSD' is asked for"),
    ],
)
def test_a_store_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    make(tmp_path, IDS)
    before = content(tmp_path)
    with pytest.raises(RequestError, match=f"was made {sentence}; the two are never mixed: give another folder with --out"):
        plan(tmp_path, IDS, blank=BLANK.model_copy(update=change))
    assert content(tmp_path) == before


def test_another_number_format_of_the_same_generator_is_the_same(tmp_path: Path) -> None:
    make(tmp_path, IDS)
    rounded = BLANK.model_copy(update={"generator": tuple(1.001 * n for n in BLANK.generator)})
    assert plan(tmp_path, IDS, blank=rounded).todo == {}


def test_missing_captions_are_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = SmallWorld()
    monkeypatch.setattr(world, "captions", lambda nsd_id: ("", " ") if nsd_id in {8, 19} else ("one",))
    with pytest.raises(DataMissing, match=r"picture 8 \(and 1 more\) of small has no caption under small; .* put COCO's captions_train2017"):
        plan(tmp_path, IDS, world)


def test_a_finished_store_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, IDS)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert len(make(tmp_path, IDS)[0]) == len(IDS)
    with pytest.raises(OutputError, match="Permission denied"):
        make(tmp_path, np.array([1]))


def test_no_room_and_no_permission_are_found_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match=r"target store needs 0\.0 GB more in .*, where 0\.0 GB are free; make room first"):
        plan(tmp_path, IDS)
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"target store cannot be written: .*file.*give another folder with --out"):
        plan(tmp_path / "file", IDS)


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, left = np.save, [2]

    def full(file: object, array: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"target store cannot be written: .* \(No space left on device\); make room, then run the same command again"):
        make(tmp_path, IDS)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.part"))
    assert make(tmp_path, IDS)[1] == IDS[2 * SHARD :].tolist()


def test_a_folder_that_cannot_be_claimed_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match=r"cannot be written \(Is a directory\); make room, then run the same command again"):
        make(tmp_path, IDS)


def test_two_runs_do_not_write_one_store(tmp_path: Path) -> None:
    made = plan(tmp_path, IDS)

    def meanwhile(_share: float, _phrase: str) -> None:
        with pytest.raises(OutputError, match="another havir targets is writing"):
            target_making.make(made, Counting(SmallWorld()))

    target_making.make(made, Counting(SmallWorld()), progress=meanwhile)
    with pytest.raises(OutputError, match="was written by another run meanwhile"):
        target_making.make(made, Counting(SmallWorld()))


def test_progress_counts_pictures_and_stops_when_it_raises(tmp_path: Path) -> None:
    told: list[float] = []

    def stop(share: float, _phrase: str) -> None:
        told.append(share)
        if len(told) == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        target_making.make(plan(tmp_path, IDS), Counting(SmallWorld()), progress=stop)
    assert told == [done / len(IDS) for done in (BATCH, 2 * BATCH, SHARD, SHARD + BATCH)]
    assert make(tmp_path, IDS)[1] == IDS[SHARD:].tolist()


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_targets_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    def broken(ids: np.ndarray):
        for places, rows in Counting(SmallWorld())(ids):
            latents = rows.latents.copy()
            latents[ids[places.start : places.stop] == 9] = value
            yield places, Rows(latents, rows.image_embeds, rows.text_embeds)

    with pytest.raises(DataInvalid, match="latents of picture 9 hold a value not finite or too large for float16"):
        target_making.make(plan(tmp_path, IDS), broken)
    assert TargetStore.open(tmp_path).nsd_ids.tolist() == IDS[:SHARD].tolist()


@pytest.mark.parametrize("harm", ["not json", "twice"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, harm: str) -> None:
    make(tmp_path, IDS)
    file = tmp_path / MANIFEST
    text = file.read_text()
    file.write_text(text[: len(text) // 2] if harm == "not json" else text.replace("\n    5,", "\n    4,", 1))
    with pytest.raises(DataInvalid, match=r"store\.json.*delete the folder, then make it again with: havir targets"):
        TargetStore.open(tmp_path)


def test_a_store_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"no target store at .*: it has no store\.json; make it again with: havir targets --out"):
        TargetStore.open(tmp_path)
