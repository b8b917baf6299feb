"""What is remembered comes back the same; what is broken is computed again; what is not ours is refused; nothing half-written stays."""

from __future__ import annotations

import errno
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from havir_explorer import store
from havir_explorer.data import open_dataset
from havir_explorer.errors import OutputError, RequestError
from havir_explorer.pipeline import decoder_folder
from havir_explorer.records import Mask, Reconstruction, Request, Score, Settings
from havir_explorer.store import Store, read_recipe, write_png, write_recipe


@pytest.fixture
def request_():
    mask = Mask(mute=("FFA-1", "rh.V1"), gains=(("PPA", 1.5),), fill="trial", fill_trial=4)
    return Request(subject="subj02", trial=7, repeats="single", mask=mask, settings=Settings(seed=11, mix=0.25))


@pytest.fixture
def result(request_):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    scores = (Score("PixCorr", float(np.float32(0.25)), 0.01, True, "64 px"), Score("CLIP", 0.93, 0.5, True, "two-way"))
    return Reconstruction(request_, *pictures, "generated", True, False, scores, (("decode", 0.1), ("diffuse", 1.2)), 15, 0.4)


def same(a: Reconstruction, b: Reconstruction) -> bool:
    pictures = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("picture", "structure", "stimulus"))
    facts = all(getattr(a, n) == getattr(b, n) for n in ("request", "kind", "synthetic", "trained_on", "scores", "seconds", "steps_run", "signal"))
    return pictures and facts


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_result_comes_back_the_same(tmp_path, result, request_):
    memory = Store(tmp_path / "results")
    assert memory.get(request_) is None
    memory.put(result)
    assert same(memory.get(request_), result)
    assert leftovers(tmp_path) == [f"{request_.key}.npz"]
    other = Request(subject="subj02", trial=8)
    assert memory.get(other) is None


def test_numpy_numbers_are_remembered_too(tmp_path, request_, result):
    scores = (Score("SSIM", np.float32(0.5), None, True, ""),)
    odd = Reconstruction(request_, result.picture, result.structure, result.stimulus, "decoded", np.True_, False, scores, (("decode", np.float64(1)),), 0, 1.0)
    memory = Store(tmp_path)
    memory.put(odd)
    assert memory.get(request_).scores[0].value == 0.5


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "swapped", "shape"])
def test_a_corrupt_entry_is_deleted_and_asked_for_again(tmp_path, result, request_, damage):
    memory = Store(tmp_path)
    memory.put(result)
    path = memory.path(request_)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        middle = len(content) // 2
        content[middle] ^= 0xFF
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "swapped":  # a sound entry under another request's name
        other = Request(trial=99)
        path.rename(memory.path(other))
        path, request_ = memory.path(other), other
    else:
        with np.load(path) as arrays:
            np.savez_compressed(path, about=arrays["about"], picture=np.zeros((4, 4), np.float32), structure=arrays["structure"], stimulus=arrays["stimulus"])
    assert memory.get(request_) is None
    assert not path.exists()
    memory.put(result)
    assert memory.get(result.request) is not None


@pytest.mark.parametrize(("place", "bits"), [(8, 0x01), (10, 0x40), (10, 0x02), (16, 0xFF), (20, 0xFF), (42, 0x01)])
def test_a_flipped_bit_in_the_archives_directory_is_computed_again(tmp_path, result, request_, place, bits):
    """The flags, where one bit says encrypted; the compression method; checksum, size and place."""
    memory = Store(tmp_path)
    memory.put(result)
    path = memory.path(request_)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + place] ^= bits
    path.write_bytes(content)
    assert memory.get(request_) is None
    assert not path.exists()


def test_a_flipped_bit_anywhere_is_never_a_crash_nor_another_picture(tmp_path, request_):
    picture = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    small = Reconstruction(request_, picture, picture, picture, "generated", True, False, (), (), 1, 0.5)
    memory = Store(tmp_path)
    memory.put(small)
    path = memory.path(request_)
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 3):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        found = memory.get(request_)
        assert found is None or same(found, small), f"byte {place}"
        refused += found is None
    assert refused > len(sound) / 6


@pytest.mark.parametrize("header", [b"{'descr': '|u1', 'shape': (((", b"{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8"])
def test_an_array_whose_header_is_damaged_is_computed_again(tmp_path, request_, result, header):
    memory = Store(tmp_path)
    memory.put(result)
    path = memory.path(request_)
    with np.load(path) as arrays, zipfile.ZipFile(tmp_path / "other", "w") as archive:
        for name in arrays.files:
            buffer = io.BytesIO()
            np.save(buffer, arrays[name])
            damaged = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
            archive.writestr(f"{name}.npy", damaged if name == "picture" else buffer.getvalue())
    (tmp_path / "other").replace(path)
    assert memory.get(request_) is None
    assert not path.exists()


def test_a_pickle_in_an_entry_is_never_opened(tmp_path, request_, result):
    memory = Store(tmp_path)
    memory.put(result)
    bomb = np.array([Exploding()], dtype=object)
    np.savez(memory.path(request_), about=bomb, picture=bomb, structure=bomb, stimulus=bomb)
    assert memory.get(request_) is None
    assert not (tmp_path / "exploded").exists()


class Exploding:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_other_weights_make_an_entry_stale(tmp_path, request_):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"one")
    mine = Request(generator=str(weights))
    picture = np.zeros((8, 8, 3), np.uint8)
    memory = Store(tmp_path / "results")
    memory.put(Reconstruction(mine, picture, picture, picture, "generated", True, False, (), (), 1, 0.5))
    assert memory.get(mine) is not None
    (weights / "model.safetensors").write_bytes(b"other")
    assert memory.get(mine) is None


def remembered(memory: Store, request: Request) -> bool:
    picture = np.zeros((8, 8, 3), np.uint8)
    memory.put(Reconstruction(request, picture, picture, picture, "generated", True, False, (), (), 1, 0.5))
    return memory.get(request) is not None


def test_other_betas_make_an_entry_stale(tmp_path, tree):
    memory, mine = Store(tmp_path / "results"), Request(dataset=str(tree))
    assert remembered(memory, mine)
    beta = next((tree / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm").rglob("betas_session*.hdf5"))
    beta.unlink()
    assert memory.get(mine) is None
    assert remembered(memory, mine)
    beta.write_bytes(b"other")
    assert memory.get(mine) is None


def test_another_place_of_the_data_makes_an_entry_stale(tmp_path, tree):
    link = tmp_path / "link"
    link.symlink_to(tree, target_is_directory=True)
    memory, mine = Store(tmp_path / "results"), Request(dataset=str(link))
    assert remembered(memory, mine)
    tree.rename(tmp_path / "moved")
    link.unlink()
    link.symlink_to(tmp_path / "moved", target_is_directory=True)
    assert memory.get(mine) is None


def test_the_decoder_of_a_data_set_of_ones_own_is_watched(tmp_path, tree):
    """Not the teaching world's: a decoder that was trained again makes other pictures."""
    (tree / "synthetic.json").unlink()
    memory, mine = Store(tmp_path / "results"), Request(dataset=str(tree))
    folder = decoder_folder(open_dataset(tree), "subj01")
    assert folder.is_relative_to(tmp_path / "cache")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"one")
    assert remembered(memory, mine)
    (folder / "model.safetensors").write_bytes(b"other")
    assert memory.get(mine) is None


def test_a_data_set_that_is_gone_is_left_for_its_reader_to_say(tmp_path, tree):
    memory, mine = Store(tmp_path / "results"), Request(dataset=str(tree))
    assert remembered(memory, mine)
    tree.rename(tmp_path / "moved")
    assert memory.get(mine) is None


def test_asking_for_a_result_does_not_build_the_teaching_world(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "empty"))
    assert remembered(Store(tmp_path / "results"), Request())
    assert not (tmp_path / "empty").exists()


def test_the_oldest_are_forgotten_beyond_the_limit(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    memory = Store(tmp_path, limit=3)
    for trial in range(5):
        memory.put(Reconstruction(Request(trial=trial), picture, picture, picture, "generated", True, False, (), (), 1, 0.5))
    assert len(leftovers(tmp_path)) == 3
    assert memory.get(Request(trial=4)) is not None


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
        (tmp_path / "file" / "r.png", "a part of its folder is a file"),
        (tmp_path / "absent" / "r.png", "make the folder first"),
        (tmp_path / "folder.png", "a folder of that name"),
        (tmp_path / "r.jpg", r"end it in \.png"),
    ):
        with pytest.raises(OutputError, match=sentence) as caught:
            write_png(result, path)
        assert path.name in str(caught.value)
    assert leftovers(tmp_path) == ["file"]
    with pytest.raises(OutputError, match="a part of its folder is a file"):
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
