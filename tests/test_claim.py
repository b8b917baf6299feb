"""One writer a folder, on disks with locks and without."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from havir_explorer.claim import claimed
from havir_explorer.data import storing
from havir_explorer.errors import OutputError


def test_the_second_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    with claimed(tmp_path / ".lock", "taken", "do"), pytest.raises(OutputError, match=r"^taken$"), claimed(tmp_path / ".lock", "taken", "do"):
        pytest.fail("both held it")
    with claimed(tmp_path / ".lock", "taken", "do"):
        pass


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_worked_on_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int) -> None:
    def lockless(*_: object) -> None:
        raise OSError(answer, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lockless)
    with (
        pytest.warns(UserWarning, match=r"knows no locks \(No locks available\), so nothing keeps a second run out of it"),
        storing.alone(tmp_path, "havir prepare"),
    ):
        (tmp_path / "work").touch()
    assert (tmp_path / "work").exists()


def test_a_colleague_who_may_write_the_folder_may_claim_it(tmp_path: Path) -> None:
    with claimed(tmp_path / ".lock", "taken", "do"):
        assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666


def test_a_folder_that_cannot_be_claimed_says_why(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match=r"cannot be written \(Is a directory\); make room"), storing.alone(tmp_path, "havir prepare"):
        pass


def test_stores_need_nothing_that_windows_lacks(tmp_path: Path) -> None:
    code = """
import sys, mmap
sys.modules["fcntl"] = None
if hasattr(mmap, "MADV_WILLNEED"):
    del mmap.MADV_WILLNEED
from pathlib import Path
from havir_explorer.data import storing
from havir_explorer.decode import target_store
with storing.alone(Path(sys.argv[1]), "havir targets"):
    print("alone")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "alone\n", done.stderr
