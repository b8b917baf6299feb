"""Recipes go out with pictures and come back; what is not ours is refused; nothing half-written stays."""

from __future__ import annotations

import errno
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from some_result import leftovers, some_request, some_result

from havir_explorer import store
from havir_explorer.errors import OutputError, RequestError
from havir_explorer.records import Request
from havir_explorer.store import Store, read_recipe, write_png, write_recipe


@pytest.fixture
def request_():
    return some_request()


@pytest.fixture
def result(request_):
    return some_result(request_)


def test_a_png_carries_its_recipe_inside_and_beside(tmp_path, result, request_):
    path = tmp_path / "r.png"
    write_png(result, path)
    assert leftovers(tmp_path) == ["r.json", "r.png"]
    assert read_recipe(path) == request_
    assert read_recipe(tmp_path / "r.json") == request_
    assert read_recipe(path).key == request_.key
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), result.picture)
        inside = json.loads(picture.text[store.KEYWORD])
    beside = json.loads((tmp_path / "r.json").read_text())
    assert inside == beside
    assert beside["kind"] == "generated"
    assert beside["synthetic"] is True
    assert beside["scores"][1]["chance"] == 0.5


def test_the_recipe_can_be_stripped(tmp_path, result):
    path = tmp_path / "bare.png"
    write_png(result, path, recipe=False)
    assert leftovers(tmp_path) == ["bare.png"]
    with Image.open(path) as picture:
        assert picture.text == {}
    with pytest.raises(RequestError, match="carries no recipe"):
        read_recipe(path)


def test_a_request_alone_can_be_saved(tmp_path, request_):
    write_recipe(request_, tmp_path / "run.json")
    assert read_recipe(tmp_path / "run.json") == request_
    with pytest.raises(OutputError, match=r"end it in \.json"):
        write_recipe(request_, tmp_path / "run.txt")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trial": "7"}, "request.trial"),
        ({"trial": -1}, "trial must be 0 or more"),
        ({"trial": True}, "request.trial"),
        ({"subject": ["subj01"]}, "request.subject"),
        ({"command": "rm"}, "request.command: Unexpected keyword"),
        ({"mask": {"mute": ["V1"], "code": "x"}}, "request.mask.code"),
        ({"mask": {"mute": "V1"}}, "request.mask.mute"),
        ({"mask": {"fill": "zero"}}, "request.mask"),
        ({"settings": {"strength": 2}}, "strength must lie in"),
        ({"settings": {"strength": float("nan")}}, "strength must lie in"),
        ({"settings": {"steps": 0}}, "steps must lie in"),
        ({"settings": {"seed": 0.5}}, "request.settings.seed"),
    ],
)
def test_a_recipe_is_not_trusted(tmp_path, request_, change, sentence):
    path = tmp_path / "r.json"
    write_recipe(request_, path)
    recipe = json.loads(path.read_text())
    recipe["request"] |= change
    path.write_text(json.dumps(recipe))
    with pytest.raises(RequestError, match="is not a recipe of havir_explorer") as caught:
        read_recipe(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"[1, 2]",
        b"{}",
        b'{"havir_recipe": 2, "request": {}}',
        b"[" * 100_000,
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffiTXtx",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_not_a_recipe_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="recipe") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(10**11)  # sparse: reading it all would take the machine's memory
    with pytest.raises(RequestError, match="at most 1,000,000 bytes"):
        read_recipe(path)


def test_a_huge_or_damaged_text_chunk_is_passed_over(tmp_path, result, request_):
    write_png(result, tmp_path / "r.png")
    content = (tmp_path / "r.png").read_bytes()
    start = content.index(b"iTXt") - 4
    (length,) = struct.unpack(">I", content[start : start + 4])
    damaged = content[: start + 60] + b"?" + content[start + 61 :]
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(RequestError, match="carries no recipe"):
        read_recipe(tmp_path / "damaged.png")
    body = b"iTXt" + store.KEYWORD.encode() + b"\0\0\0\0\0" + b" " * 2_000_000
    huge = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "huge.png").write_bytes(content[:33] + huge + content[33:])
    assert read_recipe(tmp_path / "huge.png") == request_
    assert length < 10_000


def test_an_absent_recipe_is_a_sentence(tmp_path):
    with pytest.raises(RequestError, match="no such file or folder"):
        read_recipe(tmp_path / "absent.json")


def test_unwritable_paths_are_sentences(tmp_path, result):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, sentence in (
        (tmp_path / "file" / "r.png", "there is a file of that name, or of a folder's on the way to it"),
        (tmp_path / "absent" / "r.png", "make the folder first"),
        (tmp_path / "folder.png", "a folder of that name"),
        (tmp_path / "r.jpg", r"end it in \.png"),
    ):
        with pytest.raises(OutputError, match=sentence) as caught:
            write_png(result, path)
        assert path.name in str(caught.value)
    assert leftovers(tmp_path) == ["file"]
    with pytest.raises(OutputError, match="there is a file of that name, or of a folder's on the way to it"):
        Store(tmp_path / "file" / "results").put(result)


@pytest.mark.parametrize("content", [b'{"subjects": 8}', b"", b"\x00\x01"])
def test_a_users_own_json_is_not_overwritten(tmp_path, result, content):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(OutputError, match="may not be replaced") as caught:
        write_png(result, tmp_path / "data.png")
    assert "data.json" in str(caught.value)
    assert leftovers(tmp_path) == ["data.json"]
    assert (tmp_path / "data.json").read_bytes() == content
    write_png(result, tmp_path / "data.png", recipe=False)
    assert (tmp_path / "data.json").read_bytes() == content


def test_a_folder_in_the_recipes_place_is_a_sentence(tmp_path, result):
    (tmp_path / "r.json").mkdir()
    with pytest.raises(OutputError, match="a folder of that name"):
        write_png(result, tmp_path / "r.png")
    assert leftovers(tmp_path) == []


def test_an_earlier_recipe_is_replaced(tmp_path, result, request_):
    write_recipe(Request(trial=1), tmp_path / "r.json")
    write_png(result, tmp_path / "r.png")
    assert read_recipe(tmp_path / "r.json") == request_


@pytest.mark.parametrize(("code", "sentence"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "not allowed there"), (errno.EROFS, "read-only")])
def test_a_full_or_forbidden_disk_leaves_nothing_half_written(tmp_path, monkeypatch, result, request_, code, sentence):
    kept = tmp_path / "r.png"
    kept.write_bytes(b"an earlier picture")
    real = Path.write_bytes

    def half(self, content):
        real(self, content[: len(content) // 2])
        raise OSError(code, "simulated")

    monkeypatch.setattr(Path, "write_bytes", half)
    memory = Store(tmp_path / "results")
    for write in (lambda: write_png(result, kept), lambda: write_recipe(request_, tmp_path / "r.json"), lambda: memory.put(result)):
        with pytest.raises(OutputError, match=sentence) as caught:
            write()
        assert isinstance(caught.value, OSError)
    monkeypatch.undo()
    assert leftovers(tmp_path) == ["r.png"]
    assert kept.read_bytes() == b"an earlier picture"
    assert memory.get(request_) is None


def test_the_picture_and_its_json_are_both_or_neither(tmp_path, monkeypatch, result):
    real = Path.write_bytes

    def refuse_json(self, content):
        if ".json" in self.name:
            raise OSError(errno.ENOSPC, "simulated")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", refuse_json)
    with pytest.raises(OutputError, match="the disk is full"):
        write_png(result, tmp_path / "r.png")
    assert leftovers(tmp_path) == []
