"""Building the teaching world is all or nothing."""

import errno
import os
import time
from pathlib import Path

import pytest

from havir_explorer.data.demo import write
from havir_explorer.errors import Cancelled, OutputError


@pytest.mark.parametrize("after", [1, 4])
def test_a_cancelled_build_leaves_nothing(tmp_path, after):
    calls = []

    def progress(share, _words):
        calls.append(share)
        if len(calls) == after:
            raise Cancelled

    with pytest.raises(Cancelled):
        write.write_world(tmp_path / "cache" / "world", progress)
    assert list((tmp_path / "cache").iterdir()) == []
    assert calls == sorted(calls)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "savemat", full)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        write.write_world(tmp_path / "world", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_hdf5_says_a_full_disk_in_its_own_words(tmp_path, monkeypatch):
    def full(*_args, **_options):
        msg = "Can't decrement id ref count (file write failed: errno = 28, error message = 'No space left on device')"
        raise RuntimeError(msg)

    monkeypatch.setattr(write, "_write_design", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write.write_world(tmp_path / "world", lambda *_: None)


def test_a_fault_of_ours_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def wrong(*_args, **_options):
        raise RuntimeError("something else")  # noqa: EM101, TRY003

    monkeypatch.setattr(write, "_write_design", wrong)
    with pytest.raises(RuntimeError, match="something else"):
        write.write_world(tmp_path / "world", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written to") as problem:
        write.write_world(blocker / "world", lambda *_: None)
    assert "HAVIR_CACHE" in str(problem.value)


def test_the_world_of_a_faster_process_is_kept(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    (theirs / "synthetic.json").write_text("{}")
    write._put_in_place(ours, theirs)
    assert (theirs / "synthetic.json").is_file()
    (theirs / "synthetic.json").rename(theirs / "something else")
    with pytest.raises(OSError, match=r"."):
        write._put_in_place(ours, theirs)


def test_a_build_removes_what_killed_ones_have_left_and_nothing_else(tmp_path):
    killed, living, others, ours = (tmp_path / name for name in (".world-killed", ".world-living", ".another-killed", "world.old"))
    for folder in (killed, living, others, ours):
        (folder / "nsddata").mkdir(parents=True)
        (folder / "nsddata" / "file").touch()
    long_ago = time.time() - write._STALE - 60
    for folder in (killed, others, ours):
        os.utime(folder, (long_ago, long_ago))

    def stop(_share, _words):
        raise Cancelled

    with pytest.raises(Cancelled):
        write.write_world(tmp_path / "world", stop)
    assert {path.name for path in tmp_path.iterdir()} == {".world-living", ".another-killed", "world.old"}
    assert (living / "nsddata" / "file").is_file()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    from havir_explorer.paths import cache_folder

    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HAVIR_CACHE", "")
    assert isinstance(cache_folder(), Path)
    assert cache_folder().name == "havir_explorer"
