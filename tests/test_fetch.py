"""Fetching from a real S3 server on loopback that holds the small tree: whole, cut, damaged, changed, denied, full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from filelock import FileLock
from s3_server import Server, files_of_at_most
from small_nsd import BETAS, BRICK, DESIGN, FUNC, LABEL

from havir_explorer.cli import command
from havir_explorer.data import open_dataset
from havir_explorer.data.fetch import bucket, folder, pictures, transfer
from havir_explorer.data.nsd import NSD
from havir_explorer.errors import DataMissing

BETA = (BETAS / "betas_session01.hdf5").as_posix()


@pytest.fixture(scope="module")
def source(pristine, tmp_path_factory) -> Path:
    """The small tree with one atlas beside nsdgeneral, to keep the number of requests down."""
    root = tmp_path_factory.mktemp("bucket") / "tree"
    others = ("prf-visualrois", "floc-faces", "HCP_MMP1")
    shutil.copytree(pristine.root, root, ignore=lambda _, names: [name for name in names if any(other in name for other in others)])
    return root


@pytest.fixture(scope="module")
def running(source):
    server = Server()
    server.upload(source)
    yield server
    server.stop()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setattr(transfer, "PAUSES", ())
    monkeypatch.setattr(bucket, "RETRIES", 1)
    monkeypatch.setattr(transfer, "BLOCK", 50_000)
    monkeypatch.setattr(transfer, "BATCH", 100_000)
    yield running
    running.heal()


@pytest.fixture
def fetch(server, tmp_path, capsys):
    """Run ``havir fetch nsd`` into a folder of the test's own: exit code, JSON, stderr."""

    def go(*arguments: object, to: Path | None = None, accept: bool = True):
        asked = ["--subjects", "1", "--sessions", "1-2", "--to", to or tmp_path / "tree", "--endpoint", server.endpoint, *arguments]
        capsys.readouterr()
        code = command(["fetch", "nsd", "--json", *(["--accept-nsd-terms"] if accept else []), *(str(a) for a in asked)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else {}, printed.err

    return go


def same_files(source: Path, copy: Path) -> None:
    """Every file of the source but the brick is in the copy, byte for byte, and nothing else is."""
    mine = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file() and folder.STATE not in path.parts}
    theirs = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert mine | {BRICK} == theirs
    assert all((copy / path).read_bytes() == (source / path).read_bytes() for path in theirs - {BRICK})


def test_a_fetched_tree_is_the_buckets_and_opens(fetch, server, pristine, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "a"))
    code, said, err = fetch("--images", "needed")
    assert code == 0, err
    root = tmp_path / "tree"
    same_files(source, root)
    assert said["fetched"]["checked"] == {"MD5": said["fetched"]["files"]}
    assert said["fetched"]["pictures"] == len(np.unique(pristine.nsd_ids))
    assert {key: count for key, count in server.sent.items() if key != BRICK.as_posix()} == {entry["key"]: entry["bytes"] for entry in said["files"]}
    mine, theirs = open_dataset(root), NSD(source, cache=tmp_path / "b")
    trials = np.array([0, 749, 750, 1499])
    assert np.array_equal(mine.responses("subj01", trials), theirs.responses("subj01", trials))
    assert np.array_equal(mine.stimuli(pristine.nsd_ids[:9]), theirs.stimuli(pristine.nsd_ids[:9]))
    assert mine.surface("subj01").mesh == "fsaverage5"


def test_a_second_fetch_reads_nothing_and_is_quick(fetch, server, capsys, tmp_path):
    assert fetch("--images", "shared")[0] == 0
    server.heal()
    start = time.perf_counter()
    code, said, _ = fetch("--images", "shared", accept=False)
    assert code == 0
    assert said["bytes_to_come"] == said["fetched"]["files"] == said["fetched"]["moved"] == 0
    assert sum(server.sent.values()) == 0
    assert time.perf_counter() - start < 10
    capsys.readouterr()
    assert command(["fetch", "nsd", "--subjects", "1", "--sessions", "1-2", "--to", str(tmp_path / "tree"), "--endpoint", server.endpoint]) == 0
    assert "everything is here already" in capsys.readouterr().out


def test_a_cut_is_resumed_at_the_byte(fetch, server, source, tmp_path):
    server.budget = 300_123
    code, _, err = fetch()
    assert code == 2
    assert "run the same command again: what has come so far is kept" in err
    parts = {path: path.stat().st_size for path in (tmp_path / "tree").rglob("*.part")}
    finished = sum(path.stat().st_size for path in (tmp_path / "tree").rglob("*") if path.is_file() and folder.STATE not in path.parts) - sum(parts.values())
    server.heal()
    code, said, err = fetch()
    assert code == 0, err
    same_files(source, tmp_path / "tree")
    total = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) - (source / BRICK).stat().st_size
    assert sum(parts.values()) > 0
    assert sum(server.sent.values()) == said["fetched"]["moved"] == total - finished - sum(parts.values())


@pytest.mark.parametrize("length", [1, 49_999, 100_001])
def test_a_part_of_any_length_is_gone_on_with(fetch, server, source, tmp_path, length):
    whole = (source / BETA).read_bytes()
    listed = bucket.Bucket(server.endpoint).listing([BETA])[BETA]
    part = transfer.whole(listed, tmp_path / "tree").part
    part.parent.mkdir(parents=True)
    part.write_bytes(whole[:length])
    assert fetch("--sessions", "1")[0] == 0
    assert server.sent[BETA] == len(whole) - length
    assert (tmp_path / "tree" / BETA).read_bytes() == whole


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_or_killed_command_is_resumed(fetch, server, source, tmp_path, how, code):
    server.delay = 0.1
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # what is started in the background may have been told to ignore it
    command_line = [sys.executable, "-c", f"{heard}; from havir_explorer.cli import main; main()", "fetch", "nsd", "--subjects", "1", "--sessions", "1-2"]
    command_line += ["--accept-nsd-terms", "--to", str(tmp_path / "tree"), "--endpoint", server.endpoint]
    process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "tree").rglob("*.nii.gz")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert how == signal.SIGKILL or "run the same command again to go on" in said
    already = sum(server.sent.values())
    server.delay = 0.0
    assert fetch()[0] == 0
    same_files(source, tmp_path / "tree")
    assert 0 < already < sum(server.sent.values())


def test_a_damaged_file_is_not_kept(fetch, server, tmp_path, source):
    server.damaged = (BETA,)
    code, _, err = fetch()
    assert code == 2
    assert f"{BETA} arrived damaged: its MD5 is " in err
    assert "the part was deleted: run the same command again" in err
    assert not list((tmp_path / "tree" / BETA).parent.glob("betas_session01*"))
    server.heal()
    assert fetch()[0] == 0
    same_files(source, tmp_path / "tree")


def test_an_object_that_changed_since_the_cut_starts_anew(fetch, server, source, tmp_path):
    server.budget = 300_000
    assert fetch("--sessions", "1")[0] == 2
    server.heal()
    other = (source / BETAS / "betas_session02.hdf5").read_bytes()
    with server.replaced(BETA, other):
        assert fetch("--sessions", "1")[0] == 0
    assert (tmp_path / "tree" / BETA).read_bytes() == other
    assert not list((tmp_path / "tree").rglob("*.part"))


def test_a_brick_that_changes_meanwhile_gives_no_pictures(fetch, server, source, tmp_path, monkeypatch):
    brick = BRICK.as_posix()
    lay_out = pictures.layout

    def and_then_it_changes(*arguments):
        where = lay_out(*arguments)
        server.put(brick, (source / BRICK).read_bytes() + b"x")
        return where

    monkeypatch.setattr(pictures, "layout", and_then_it_changes)
    with server.replaced(brick, (source / BRICK).read_bytes()):
        code, _, err = fetch("--images", "shared")
    assert code == 2
    assert f"{brick} was replaced in the bucket while it was being fetched" in err
    assert not list((tmp_path / "tree" / BRICK).parent.glob("*"))


def test_a_file_from_elsewhere_is_checked_and_not_fetched_again(fetch, server, source, tmp_path):
    assert fetch()[0] == 0
    file = tmp_path / "tree" / BETA
    os.utime(file, (1, 1))
    server.heal()
    code, said, _ = fetch()
    assert (code, said["fetched"]["files"], server.sent[BETA]) == (0, 1, 0)
    file.write_bytes(bytes(file.stat().st_size))
    assert fetch()[0] == 0
    assert file.read_bytes() == (source / BETA).read_bytes()


def test_a_session_that_was_prepared_and_deleted_is_not_fetched_again(fetch, server, tmp_path, monkeypatch):
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))
    assert fetch("--sessions", "1")[0] == 0
    assert command(["prepare", "--dataset", str(tmp_path / "tree"), "--delete-originals"]) == 0
    server.heal()
    code, said, err = fetch()
    assert code == 0, err
    assert (server.sent[BETA], said["fetched"]["files"]) == (0, 1)
    assert not (tmp_path / "tree" / BETA).exists()
    with server.replaced(BETA, (tmp_path / "tree" / BETAS / "betas_session02.hdf5").read_bytes()):
        assert fetch()[0] == 0
    assert (tmp_path / "tree" / BETA).exists()


def test_a_missing_object_that_is_needed(fetch, server, tmp_path):
    with server.without(BETA):
        code, _, err = fetch()
    assert code == 2
    assert f"holds no {BETA}; choose another subject, session or preparation" in err
    assert not list((tmp_path / "tree").rglob("*.gz"))


def test_an_atlas_without_its_name_table_is_left_out_and_named(fetch, server, tmp_path):
    with server.without((LABEL / "Kastner2015.mgz.ctab").as_posix()):
        code, said, _ = fetch()
    assert code == 0
    assert {"Kastner2015 of subj01", "MTL of subj01", f"{FUNC.as_posix()}/mean.nii.gz"} <= set(said["absent"])
    assert not list((tmp_path / "tree").rglob("*Kastner2015*"))
    assert "Kastner2015" not in NSD(tmp_path / "tree", cache=tmp_path / "cache").atlas("subj01").names


def test_denied_access(fetch, server, source):
    with server.replaced(BETA, (source / BETA).read_bytes(), public=False):
        code, _, err = fetch()
    assert code == 2
    assert f"denies access to {BETA}; it is public, so a proxy or the server given with --endpoint is in the way" in err


def test_no_server(fetch):
    code, _, err = fetch("--endpoint", "http://127.0.0.1:9")
    assert code == 2
    assert "cannot be read" in err
    assert "check the network" in err


def test_too_little_room_is_said_before_anything_comes(fetch, server, monkeypatch, tmp_path):
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=70_000_000))
    code, _, err = fetch("--images", "needed")
    assert code == 2
    assert "not enough room in" in err
    assert "70.0 MB are free" in err
    assert sum(server.sent.values()) == 0


def test_a_disk_that_fills_up_in_the_middle(fetch, server, source, tmp_path):
    with files_of_at_most(220_000):
        code, _, err = fetch("--sessions", "1")
    assert code == 2
    assert "cannot write" in err
    assert "run the same command again: what has come so far is kept" in err
    (part,) = (tmp_path / "tree" / BETAS).glob("betas_session01*.part")
    assert part.stat().st_size > 100_000
    kept = part.stat().st_size
    server.heal()
    assert fetch("--sessions", "1")[0] == 0
    assert server.sent[BETA] == (source / BETA).stat().st_size - kept


def test_terms_are_asked_for_once_a_folder(fetch, tmp_path):
    code, _, err = fetch(accept=False)
    assert code == 2
    assert "https://cvnlab.slite.page/p/IB6BSeW_7o" in err
    assert "access form: https://" in err
    assert "add --accept-nsd-terms" in err
    assert not (tmp_path / "tree").exists()
    assert fetch()[0] == 0
    assert "slite" not in fetch(accept=False)[2]


def test_a_dry_run_writes_nothing(fetch, server, tmp_path):
    code, said, _ = fetch("--dry-run", "--images", "needed", accept=False)
    assert code == 0
    assert said["pictures"] == {"count": 1500, "to_come": 1500, "exact": False}
    assert said["fetched"] is None
    assert sum(server.sent.values()) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(fetch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = fetch(to=tmp_path / "file" / "tree")
    assert code == 2
    assert "cannot write" in err
    assert "give another folder with --to" in err


def test_two_fetches_into_one_folder(fetch, tmp_path):
    (tmp_path / "tree" / folder.STATE).mkdir(parents=True)
    with FileLock(tmp_path / "tree" / folder.STATE / "lock"):
        code, _, err = fetch()
    assert code == 2
    assert "another fetch is writing to" in err


def test_pictures_that_were_not_fetched_are_not_taken_for_grey(fetch, server, pristine, source, tmp_path):
    assert fetch("--images", "shared")[0] == 0
    tree = NSD(tmp_path / "tree", cache=tmp_path / "cache")
    trials = tree.trials("subj01")
    shared, other = (int(trials.loc[trials["shared"] == is_shared, "nsd_id"].iloc[0]) for is_shared in (True, False))
    assert np.array_equal(tree.stimuli(np.array([shared])), NSD(source, cache=tmp_path / "b").stimuli(np.array([shared])))
    with pytest.raises(DataMissing, match=rf"picture {other} was not fetched: .* holds 10 of 640; run havir fetch nsd --images needed --to"):
        tree.stimuli(np.array([shared, other]))
    server.heal()
    code, said, _ = fetch("--images", "needed")
    assert (code, said["fetched"]["files"], said["fetched"]["pictures"]) == (0, 0, 490)
    assert np.array_equal(tree.stimuli(pristine.nsd_ids[:50]), NSD(source, cache=tmp_path / "b").stimuli(pristine.nsd_ids[:50]))


def test_the_whole_brick_replaces_a_partial_one(fetch, server, source, tmp_path):
    assert fetch("--images", "shared")[0] == 0
    assert fetch("--images", "all")[0] == 0
    assert (tmp_path / "tree" / BRICK).read_bytes() == (source / BRICK).read_bytes()
    server.heal()
    code, said, _ = fetch("--images", "shared")
    assert (code, said["pictures"]["to_come"], server.sent[BRICK.as_posix()]) == (0, 0, 0)
    with h5py.File(tmp_path / "tree" / BRICK) as file:
        assert list(file) == ["imgBrick"]


def test_what_is_listed_for_people(fetch, server, capsys, tmp_path):
    asked = ["--subjects", "1", "--sessions", "1", "--images", "shared", "--to", str(tmp_path / "t"), "--endpoint", server.endpoint]
    code = command(["fetch", "nsd", "--accept-nsd-terms", *asked])
    out = capsys.readouterr().out
    assert code == 0
    assert all(word in out for word in ("betas", "pictures", "at most", "to come", "not in the bucket", "checked:", "by MD5", f"--dataset {tmp_path / 't'}"))
    assert (tmp_path / "t" / DESIGN / "nsd_expdesign.mat").is_file()
