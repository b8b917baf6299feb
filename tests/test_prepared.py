"""The prepared store: the same numbers as the files it came from, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_nsd import BETAS, Tree, nifti_tree, save_roi
from small_prepared import ALL, STORE, content, prepare, read

from havir_explorer.cli import command
from havir_explorer.data import betas, open_dataset, prepared, preparing, storing
from havir_explorer.data.conventions import CONVENTIONS, PREPARATIONS
from havir_explorer.data.prepared import Dtype
from havir_explorer.errors import DataInvalid, RequestError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_store_gives_the_same_responses_without_the_originals(damaged: Tree, dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(damaged)
    record = prepare(damaged, dtype=dtype)
    assert (list(record.sessions), record.dtype, record.convention) == ([1, 2], dtype, "b3")
    monkeypatch.setattr(betas, "read_columns", lambda *_: pytest.fail("the beta files were read"))
    np.testing.assert_allclose(read(damaged), before, atol=0 if dtype == "int16" else 2e-6)
    shutil.rmtree(damaged.root / BETAS)
    reader = damaged.nsd(damaged.root / "cache")
    assert reader.subjects() == ("subj01",)
    assert reader.trials("subj01").index.tolist() == ALL.tolist()
    np.testing.assert_allclose(read(damaged), before, atol=0 if dtype == "int16" else 2e-6)


def test_both_formats_make_the_same_store(damaged: Tree, pristine: Tree, tmp_path: Path) -> None:
    prepare(damaged)
    other = nifti_tree(pristine, tmp_path / "nifti")
    prepare(other)
    first, second = content(damaged.root / STORE), content(other.root / STORE)
    assert first.pop(prepared.RECORD) != second.pop(prepared.RECORD), "the record names the files it came from"
    assert first == second


@pytest.mark.parametrize("name", ["brain-diffuser", "mindeye1", "mindeye2"])
def test_published_conventions_are_kept_with_the_store(damaged: Tree, name: str) -> None:
    folder = damaged.root / BETAS.parent / PREPARATIONS[CONVENTIONS[name].preparation]
    if not folder.is_dir():
        shutil.copytree(damaged.root / BETAS, folder)
    before = read(damaged, name)
    record = prepare(damaged, name)
    assert record.convention == name
    assert bool(record.moments) == (name == "brain-diffuser")
    assert open_dataset(damaged.root).convention == CONVENTIONS[name].words, "a tree is read as it was prepared"
    np.testing.assert_array_equal(read(damaged), before)
    other = "b2" if name == "mindeye2" else "b3"
    np.testing.assert_allclose(read(damaged, other).mean(axis=0), 0, atol=1e-6)  # the values serve every convention of their preparation


def test_statistics_over_sessions_notice_a_session_that_came_later(damaged: Tree, tmp_path: Path) -> None:
    whole = read(damaged, "brain-diffuser")
    late = (damaged.root / BETAS / "betas_session02.hdf5").rename(tmp_path / "late.hdf5")
    prepare(damaged, "brain-diffuser")
    shutil.move(late, damaged.root / BETAS / "betas_session02.hdf5")
    np.testing.assert_allclose(read(damaged), whole, atol=1e-6)
    assert list(prepare(damaged, "brain-diffuser").sessions) == [1, 2]
    np.testing.assert_allclose(read(damaged), whole, atol=1e-6)


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "moments", "voxels", "record", "other shape"])
def test_a_damaged_store_is_refused_and_rebuilt(damaged: Tree, harm: str) -> None:
    before, _ = read(damaged), prepare(damaged)
    expected = content(damaged.root / STORE)
    names = {"moments": "session02.moments.npy", "voxels": "voxels.npy", "record": "store.json"}
    file = damaged.root / STORE / names.get(harm, "session02.npy")
    whole = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "other shape":
        np.save(file, np.zeros((3, 3), np.int16))
    else:
        file.write_bytes(whole[: len(whole) // 2] if harm in {"cut", "record"} else whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(DataInvalid, match=rf"prepared responses of subj01 .*{file.name}.*rebuild it with: havir prepare --dataset .* --subject subj01"):
        read(damaged)
    prepare(damaged)
    assert content(damaged.root / STORE) == expected
    np.testing.assert_array_equal(read(damaged), before)


def test_a_damaged_session_without_its_original_cannot_be_rebuilt(damaged: Tree) -> None:
    prepare(damaged)
    (damaged.root / BETAS / "betas_session02.hdf5").unlink()
    (damaged.root / STORE / "session02.npy").write_bytes(b"")
    with pytest.raises(DataInvalid, match=r"session02\.npy"):
        prepare(damaged)


def test_a_store_of_another_voxel_set_is_refused(damaged: Tree) -> None:
    prepare(damaged)
    save_roi(damaged.root, "floc-words", {(4, 7, 2): 1}, "0 Unknown\n1 OWFA\n")
    with pytest.raises(DataInvalid, match=r"hold 9 voxels other than the 10 of its ROI files: .*rebuild it with"):
        read(damaged)
    assert prepare(damaged).n_voxels == 10
    assert read(damaged).shape[1] == 10


@pytest.mark.parametrize(("field", "value"), [("subject", "subj02"), ("preparation", "b2")])
def test_a_store_of_another_subject_or_preparation_is_refused(damaged: Tree, field: str, value: str) -> None:
    prepare(damaged)
    file = damaged.root / STORE / prepared.RECORD
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(DataInvalid, match=f"is of .*{value}.*never mixed"):
        read(damaged)


def test_a_replaced_original_makes_the_store_stale(damaged: Tree) -> None:
    prepare(damaged, "mindeye1")
    file = damaged.root / BETAS / "betas_session01.hdf5"
    shutil.copy(damaged.root / BETAS / "betas_session02.hdf5", file)
    with pytest.raises(DataInvalid, match=r"older than .*betas_session01\.hdf5, which has been replaced since; rebuild .* subj01 --convention mindeye1$"):
        read(damaged)
    prepare(damaged)
    np.testing.assert_array_equal(read(damaged)[:750], read(damaged)[750:])


@pytest.mark.parametrize("form", ["hdf5", "nifti"])
def test_a_copied_tree_needs_no_preparing_anew(damaged: Tree, pristine: Tree, tmp_path: Path, form: str) -> None:
    tree = nifti_tree(pristine, tmp_path / "nifti") if form == "nifti" else damaged
    before = prepare(tree)
    for file in (tree.root / BETAS).glob("betas_session*"):
        os.utime(file)  # as cp -r does
    assert read(tree).any()
    assert prepare(tree) == before
    first, second = sorted((tree.root / BETAS).glob("betas_session*"))
    shutil.copy(second, first)
    with pytest.raises(DataInvalid, match="has been replaced since"):
        read(tree)


def test_two_conventions_in_one_tree_must_be_named(damaged: Tree) -> None:
    prepare(damaged, "mindeye1")
    shutil.copytree(damaged.root / BETAS, damaged.root / BETAS.parent / PREPARATIONS["b2"])
    prepare(damaged, "b2")
    with pytest.raises(DataInvalid, match=r"prepared under different conventions \(.*mindeye1.*never mixed; open .*#b2 or .*#mindeye1"):
        open_dataset(damaged.root)
    assert open_dataset(f"{damaged.root}#mindeye1").responses("subj01", ALL).any()


def test_originals_are_deleted_after_comparison_only(damaged: Tree) -> None:
    before = read(damaged)
    plan = preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "float32")
    record = preparing.prepare(plan)
    file = damaged.root / STORE / "session02.npy"
    other = np.load(file)
    other[3, 3] += 1
    np.save(file, other)
    lying = record.sessions[2].model_copy(update={"values": storing.digest(file)})
    with pytest.raises(DataInvalid, match=r"the prepared session 2 of subj01 differs from .*betas_session02\.hdf5, which stays"):
        preparing.delete_originals(plan, record.model_copy(update={"sessions": {**record.sessions, 2: lying}}))
    assert [f.name for f in sorted((damaged.root / BETAS).glob("betas_*"))] == ["betas_session02.hdf5"]
    again = preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "float32")
    assert again.todo == (2,)
    deleted = preparing.delete_originals(again, preparing.prepare(again))
    assert [f.name for f in deleted] == ["betas_session02.hdf5"]
    np.testing.assert_allclose(read(damaged), before, atol=2e-6)
    with pytest.raises(DataInvalid, match=r"holds session 1 of subj01 prepared as b3, float32, 9 voxels, and its original is gone"):
        preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "int16")


def test_the_command_says_what_it_will_cost_and_does_it(damaged: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", "--dataset", str(damaged.root), "--dtype", "float32", "--convention", "brain-diffuser"]
    assert command([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "subj01: 2 sessions, 9 voxels of nsdgeneral and the ROIs, float32, convention brain-diffuser" in err
    assert "writes 54 kB to" in err
    assert "free), about 1 s" in err
    told = json.loads(out)
    assert (told["sessions"], told["prepared"], told["deleted"]) == ([1, 2], [1, 2], [])
    assert command([*arguments, "--delete-originals"]) == 0
    out, err = capsys.readouterr()
    assert "2 sessions (2 already prepared)" in err
    assert "then deletes the original beta files, each after comparing it" in err
    assert "deleted 2 original files" in out
    assert not list((damaged.root / BETAS).glob("betas_*"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--dtype", "int8"], "--dtype takes int16 or float32; got 'int8'"),
        (["--workers", "0"], "--workers must be 1 or more; got 0"),
        (["--convention", "b4"], "no convention is called 'b4'"),
        (["--subject", "subj07"], "no subject 'subj07'"),
    ],
)
def test_bad_options_are_answered_in_a_sentence(pristine: Tree, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["prepare", "--dataset", str(pristine.root), *more]) == 2
    assert sentence in capsys.readouterr().err
    assert not (pristine.root / "prepared").exists()


def test_an_unknown_convention_is_named(pristine: Tree) -> None:
    with pytest.raises(RequestError, match="nearest"):
        pristine.nsd(pristine.root / "cache", "zscore")
