"""Pictures that were drawn before a stop are not drawn again, and never taken for those of other weights."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from havir_explorer.cli import command
from havir_explorer.errors import DataInvalid, OutputError
from havir_explorer.evaluate import Chunk, chunks, gathered, run
from havir_explorer.evaluate.drawing import Progress
from havir_explorer.evaluate.keeping import kept
from havir_explorer.pipeline import models
from havir_explorer.records import Request, Settings, UInt8Array

IDS = np.arange(100, 111)


class Drawer:
    """Draws each image in its own colour and remembers which it drew; stops before the chunk ``until``."""

    def __init__(self, until: int = 99) -> None:
        self.until, self.drawn = until, []

    def __call__(self, planned: Sequence[Chunk], progress: Progress) -> Iterator[tuple[int, UInt8Array]]:
        for place in reversed(range(len(planned))):
            if len(self.drawn) == self.until:
                raise KeyboardInterrupt
            self.drawn.append(planned[place].nsd_ids)
            progress((len(planned) - place) / len(planned), "")
            yield place, np.stack([np.full((4, 4, 3), nsd_id, np.uint8) for nsd_id in planned[place].nsd_ids])


def plan(seed: int = 0) -> tuple[Chunk, ...]:
    return chunks("full", IDS, Request(settings=Settings(seed=seed)), size=3)


def test_a_stopped_evaluation_goes_on(tmp_path: Path) -> None:
    first, second, shares = Drawer(until=2), Drawer(), []
    with pytest.raises(KeyboardInterrupt):
        gathered(kept(tmp_path / "new", lambda request: "a", first)(plan(), lambda share, line: None), plan())
    assert len(list((tmp_path / "new").iterdir())) == 2
    pictures = gathered(kept(tmp_path / "new", lambda request: "a", second)(plan(), lambda share, line: shares.append(share)), plan())
    assert pictures[:, 0, 0, 0].tolist() == IDS.tolist()
    assert sorted(first.drawn + second.drawn) == [chunk.nsd_ids for chunk in plan()]
    assert shares == [0.75, 1.0]


@pytest.mark.parametrize(("seed", "stamp"), [(1, "a"), (0, "b")])
def test_other_settings_or_weights_are_other_pictures(tmp_path: Path, seed: int, stamp: str) -> None:
    list(kept(tmp_path, lambda request: "a", Drawer())(plan(), lambda share, line: None))
    again = Drawer()
    list(kept(tmp_path, lambda request: stamp, again)(plan(seed), lambda share, line: None))
    assert len(again.drawn) == 4


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    list(kept(tmp_path, lambda request: "a", Drawer())(plan(), lambda share, line: None))
    file = min(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(DataInvalid, match=f"{file.name} cannot be read"):
        list(kept(tmp_path, lambda request: "a", Drawer())(plan(), lambda share, line: None))
    np.save(file, np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(DataInvalid, match="delete that file"):
        list(kept(tmp_path, lambda request: "a", Drawer())(plan(), lambda share, line: None))


def test_two_evaluations_may_keep_their_pictures_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, save = [], np.save

    def saved(file, pictures) -> None:
        opened.append(file.name)
        save(file, pictures)

    monkeypatch.setattr(np, "save", saved)
    for place in ("a", "b"):
        list(kept(tmp_path / place, lambda request: "a", Drawer())(plan(), lambda share, line: None))
    assert len({Path(name).name for name in opened}) == 8


def test_where_keeping_is_no_must_a_full_disk_costs_a_notice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    faults = []
    drawn = list(kept(tmp_path / "file", lambda request: "a", Drawer(), on_fault=faults.append)(plan(), lambda share, line: None))
    assert (len(drawn), len(faults)) == (4, 4)
    assert "cannot keep pictures in" in str(faults[0])
    assert "there is a file of that name" in str(faults[0])


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(opened, pictures) -> None:
        opened.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"the disk is full; .* what was kept stays"):
        list(kept(tmp_path, lambda request: "a", Drawer())(plan(), lambda share, line: None))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_its_cost_and_goes_on_after_a_stop(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, drawn = ["evaluate", "--limit", "2", "--conditions", "full,no_brain,no_text"], []
    stopped: list[Chunk] = []

    def stopping(chunk: Chunk, *, progress: Progress | None = None) -> UInt8Array:
        if drawn == ["full", "no_brain"] and not stopped:
            stopped.append(chunk)
            raise KeyboardInterrupt
        drawn.append(chunk.condition)
        side = models(chunk.request)[2].side
        return np.zeros((len(chunk.nsd_ids), side, side, 3), np.uint8)

    monkeypatch.setattr(run, "draw", stopping)
    assert command(asked) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "2 test pictures under 3 conditions: 6 to draw in this process, about" in said
    assert f"what is drawn is in {cache / 'evaluations'}" in said
    assert command(asked) == 0
    assert drawn == ["full", "no_brain", "no_text"]
    assert "going on with what is there" in " ".join(capsys.readouterr().err.split())
    assert list((cache / "evaluations").iterdir()) == []
    for again in (["full", "no_brain", "no_text"], []):
        drawn.clear()
        assert command([*asked, "--protocol", "me2", "--networks", str(cache)]) == 0
        assert drawn == again
        said = " ".join(capsys.readouterr().err.split())
        assert "without AlexNet(2), AlexNet(5), Inception, CLIP, EffNet-B, SwAV, whose networks are not on this machine" in said
        assert "once their networks are here, the same command draws none of them again" in said
