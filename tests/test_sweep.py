"""A sweep: what it asks for, what it keeps, and how it goes on after a stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace

import psutil
import pytest

from havir_explorer import cluster, pipeline, rows, store, sweep
from havir_explorer.cli import command
from havir_explorer.data import open_dataset
from havir_explorer.errors import DataInvalid, MaskError, OutputError, RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.records import Mask, Request, Score, Settings
from havir_explorer.slurm import Slurm

SHORT = ("--steps", "1", "--strength", "1")


@pytest.fixture(scope="module")
def chosen(demo, trial):
    """Eight pictures, drawn in one step each."""
    base = Request(settings=Settings(steps=1, strength=1))
    return sweep.Sweep(base, ("subj01",), (trial, trial + 1), (Mask(), Mask(mute=("FFA-1",))), (0, 1))


@pytest.fixture(scope="module")
def drawn(chosen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "s"
    with rows.alone(folder):
        sweep.carry_out(sweep.plan(sweep.requests(chosen), folder))
    return folder


@pytest.fixture
def finished(drawn, tmp_path):
    """A folder of the test's own with all eight pictures' rows."""
    return shutil.copytree(drawn, tmp_path / "finished")


def partitions(folder):
    return sorted((folder / rows.ROWS).glob("*/*.parquet"))


def test_a_sweep_is_every_combination_once(chosen, demo):
    wanted = sweep.requests(replace(chosen, subjects=("subj01", "subj02", "subj01"), seeds=(0, 1, 1)))
    assert len(wanted) == len({request.key for request in wanted}) == 2 * 2 * 2 * 2
    assert {r.subject for r in wanted} == {"subj01", "subj02"}
    lesions = sweep.lesions(demo.atlas("subj01"))
    each = sweep.requests(replace(chosen, trials=chosen.trials[:1], seeds=(0,), masks=(Mask(),), each_roi=True))
    assert [r.mask for r in each] == [Mask(), *lesions]
    assert ("FFA-1",) in [mask.mute for mask in lesions]
    assert ("nsdgeneral",) not in [mask.mute for mask in lesions]


def test_masks_that_differ_have_different_words():
    masks = [
        Mask(),
        Mask(mute=("FFA-1",)),
        Mask(mute=("FFA-1", "V1")),
        Mask(keep=("FFA-1",)),
        Mask(gains=(("V1", 0.5),)),
        Mask(mute=("FFA-1",), fill="noise"),
        Mask(mute=("FFA-1",), fill="noise", fill_seed=1),
        Mask(mute=("FFA-1",), fill="trial", fill_trial=3),
    ]
    said = [sweep.condition(mask) for mask in masks]
    assert said[:4] == ["no mask", "mute FFA-1", "mute FFA-1, V1", "keep FFA-1"]
    assert len(set(said)) == len(masks)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"trials": (0, 10**6)}, RequestError, "subj01 has no trial 1000000 in demo"),
        ({"masks": (Mask(mute=("FAA-1",)),)}, MaskError, "no ROI is called 'FAA-1'; nearest: FFA-1"),
        ({"masks": (Mask(mute=("V1",), fill="trial", fill_trial=10**6),)}, RequestError, "no trial 1000000 in demo to fill a mask with"),
        ({"masks": ()}, RequestError, "at least one subject, trial, mask and seed"),
        ({"base": Request(decoder="/nowhere/{subject}")}, WeightsMissing, "no trained decoder of subj01 at /nowhere/subj01"),
    ],
)
def test_what_cannot_be_drawn_is_said_first(chosen, change, kind, words):
    with pytest.raises(kind, match=words):
        sweep.requests(replace(chosen, **change))


def test_rows_are_there_once_and_nothing_is_drawn_twice(chosen, finished):
    wanted = sweep.requests(chosen)
    found = rows.read(finished)
    assert sorted(found["request"]) == sorted(request.key for request in wanted)
    first = found.set_index("request").loc[wanted[0].key]
    assert (first["subject"], first["trial"], first["seed"], first["condition"]) == ("subj01", chosen.trials[0], 0, "no mask")
    assert json.loads(first["recipe"])["settings"]["steps"] == 1
    assert 0 <= first["CLIP"] <= 1
    assert first["CLIP chance"] == 0.5
    assert len(partitions(finished)) == 4
    assert sweep.plan(wanted, finished).chunks == ()
    more = sweep.plan(sweep.requests(replace(chosen, seeds=(0, 1, 2))), finished)
    assert (more.total, more.done, {r.settings.seed for c in more.chunks for r in c.requests}) == (12, 8, {2})


def test_a_stop_keeps_what_is_finished_and_says_how_to_go_on(chosen, tmp_path, capsys, monkeypatch):
    out, drawn, ours = tmp_path / "s", [], sweep.draw

    def interrupted(chunk):
        drawn.append(len(chunk.requests))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return ours(chunk)

    monkeypatch.setattr(sweep, "draw", interrupted)
    trials = f"{chosen.trials[0]}-{chosen.trials[1]}"
    asked = ["sweep", "--trials", trials, "--mute", "FFA-1", "--seeds", "0-1", *SHORT, "--out", str(out), "--json"]
    assert command(asked) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("havir: stopped")
    assert "8 pictures of 1 step; 8 to draw in this process" in said
    assert f"what is finished is in {out}; the same command goes on from there" in said
    assert len(rows.read(out)) == 4
    monkeypatch.setattr(sweep, "draw", ours)
    assert command(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pictures"], told["drawn"], told["already_there"]) == (8, 4, 4)
    assert {name: score["pictures"] for name, score in told["conditions"].items()} == {"no mask": 4, "mute FFA-1": 4}
    assert rows.read(out)["request"].is_unique
    assert len(rows.read(out)) == 8


def test_pictures_carry_their_recipes(chosen, tmp_path):
    wanted = sweep.requests(replace(chosen, trials=chosen.trials[:1], seeds=(0,)))
    sweep.carry_out(sweep.plan(wanted, tmp_path, pictures=True))
    for request in wanted:
        assert store.read_recipe(tmp_path / "pictures" / "subj01" / f"{request.key}.png") == request
    assert sweep.plan(wanted, tmp_path, pictures=True).chunks == ()


def test_rows_without_their_pictures_are_not_mixed_with_such_that_have_them(chosen, finished):
    with pytest.raises(OutputError, match="was begun without --pictures"):
        sweep.plan(sweep.requests(chosen), finished, pictures=True)


def test_results_of_other_weights_are_not_mixed(chosen, finished, monkeypatch):
    monkeypatch.setattr(sweep, "stamp", lambda *_folders: "of other files")
    with pytest.raises(OutputError, match="made with other weights or data than today's"):
        sweep.plan(sweep.requests(chosen), finished)


def test_a_damaged_partition_is_named(chosen, finished):
    path = partitions(finished)[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataInvalid, match=f"cannot be read: {path} .*delete that file"):
        sweep.plan(sweep.requests(chosen), finished)
    path.unlink()
    assert sweep.plan(sweep.requests(chosen), finished).done == 6


def test_a_decoder_of_another_subject_is_said_first(chosen):
    ours = str(pipeline.decoder_folder(open_dataset("demo"), "subj01"))
    with pytest.raises(WeightsInvalid, match="was trained on subj01"):
        sweep.requests(replace(chosen, subjects=("subj01", "subj02"), base=replace(chosen.base, decoder=ours)))


def test_rows_of_several_settings_and_scores_are_told_apart(tmp_path):
    asked, scored = Request(), (Score("PixCorr", 0.5, 0.1, True, ""), Score("CLIP", 0.9, 0.5, True, ""))
    row = rows.Row(asked, "of files", 3, "no mask", "generated", synthetic=True, trained_on=False, scores=scored[:1], seconds=1.0)
    other = replace(row, request=replace(asked, settings=Settings(steps=7, mix=0.1), decoder="linear"), scores=scored)
    rows.append(tmp_path, "a", [row])
    rows.append(tmp_path, "b", [other])
    found = rows.read(tmp_path).sort_values("steps")
    assert found[["steps", "mix", "decoder", "subject"]].to_numpy().tolist() == [[7, 0.1, "linear", "subj01"], [20, 0.4, "", "subj01"]]
    assert found["CLIP"].isna().tolist() == [False, True]
    assert found["PixCorr"].tolist() == [0.5, 0.5]


def test_a_folder_typed_otherwise_is_the_same_folder(demo, trial, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(demo.root.parent)
    for typed, drawn in ((demo.root.name, 1), (f"./{demo.root.name}/", 0), (str(demo.root), 0)):
        assert command(["sweep", "--dataset", typed, "--trials", str(trial), *SHORT, "--out", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["drawn"] == drawn
    assert rows.read(tmp_path)["dataset"].tolist() == [str(demo.root)]


def test_chunks_for_workers_unlike_this_machine_are_not_cut_by_its_speed(chosen, tmp_path, monkeypatch):
    slow = replace(pipeline.cost(Request()), seconds=300.0, device="cpu")
    monkeypatch.setattr(pipeline, "cost", lambda _request: slow)
    wanted = sweep.requests(replace(chosen, seeds=tuple(range(100))))
    sizes = {}
    for name, where in (("cards", cluster.Where(slurm=Slurm(gpus=1))), ("cores", cluster.Where(slurm=Slurm())), ("anyone", cluster.Where(scheduler="tcp://a:1"))):
        made = sweep.plan(wanted, tmp_path, where)
        sizes[name] = max(len(chunk.requests) for chunk in made.chunks), made.like_here
    assert sizes == {"cards": (sweep.UNKNOWN, False), "cores": (1, True), "anyone": (sweep.UNKNOWN, False)}


def test_one_sweep_at_a_time_writes_a_folder(tmp_path):
    with rows.alone(tmp_path / "s"), pytest.raises(OutputError, match="another sweep is writing"), rows.alone(tmp_path / "s"):
        pass
    for left in (tmp_path / "s" / "rows" / "subject=subj01" / ".a.parquet.1.part", tmp_path / "s" / "pictures" / "subj01" / ".b.png.1.part"):
        left.parent.mkdir(parents=True)
        left.touch()
    with rows.alone(tmp_path / "s"):
        assert list(tmp_path.rglob("*.part")) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write a sweep to"), rows.alone(tmp_path / "file"):
        pass


def test_a_full_disk_is_said_before_and_leaves_no_half_partition(chosen, tmp_path, monkeypatch):
    wanted = sweep.requests(chosen)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=10))
        with pytest.raises(OutputError, match="the sweep needs up to"):
            sweep.plan(wanted, tmp_path)

    def full(_path, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full"):
        sweep.carry_out(sweep.plan(wanted[:1], tmp_path))
    assert list(tmp_path.rglob("*.parquet")) == list(tmp_path.rglob("*.part")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("as_many_threads_as_a_worker")
def test_a_worker_killed_in_the_middle_costs_no_row_and_doubles_none(chosen, tmp_path):
    wanted, two, killed = sweep.requests(chosen), cluster.Where(workers=2), []

    def kill_one(share, _phrase):
        if share and not killed:
            workers = [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
            assert len(workers) == 2
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    folders = [tmp_path / "alone", tmp_path / "shared"]
    for folder in folders:
        folder.mkdir()
    alone, shared = (sweep.plan(wanted, folder, two) for folder in folders)
    assert len(shared.chunks) == 8
    sweep.carry_out(alone)
    sweep.carry_out(shared, two, progress=kill_one)
    assert killed
    here, there = (rows.read(folder).set_index("request").sort_index() for folder in folders)
    assert there.index.is_unique
    assert there.drop(columns="seconds").equals(here.drop(columns="seconds"))
    assert sweep.plan(wanted, folders[1], two).chunks == ()


def test_a_wrong_roi_is_said_before_any_worker_starts(capsys, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(cluster, "_local", lambda *asked: started.append(asked))
    assert command(["sweep", "--mute", "FAA-1", "--workers", "2", "--out", str(tmp_path / "s")]) == 2
    assert "no ROI is called 'FAA-1'; nearest: FFA-1" in capsys.readouterr().err
    assert started == []
    assert not (tmp_path / "s").exists()


def test_chunks_are_small_enough_for_the_workers_and_of_one_subject(chosen, tmp_path, monkeypatch):
    wanted = sweep.requests(replace(chosen, subjects=("subj01", "subj02"), seeds=tuple(range(20))))
    made = sweep.plan(wanted, tmp_path, cluster.Where(workers=2))
    assert {len(chunk.requests) for chunk in made.chunks} == {20}
    assert all(len({r.subject for r in chunk.requests}) == 1 for chunk in made.chunks)
    assert sum(len(chunk.requests) for chunk in made.chunks) == len(wanted) == made.total == 160
    assert len({chunk.key for chunk in made.chunks}) == len(made.chunks)
    monkeypatch.setattr(sweep, "CHUNK_SECONDS", 0)
    assert {len(chunk.requests) for chunk in sweep.plan(wanted, tmp_path).chunks} == {1}
