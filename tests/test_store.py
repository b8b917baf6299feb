"""What is remembered comes back the same; what is broken or out of date is computed again."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from some_result import leftovers, some_request, some_result

from havir_explorer.data import open_dataset
from havir_explorer.pipeline import decoder_folder
from havir_explorer.records import Reconstruction, Request, Score
from havir_explorer.store import Store


@pytest.fixture
def request_():
    return some_request()


@pytest.fixture
def result(request_):
    return some_result(request_)


def same(a: Reconstruction, b: Reconstruction) -> bool:
    pictures = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("picture", "structure", "stimulus"))
    facts = all(getattr(a, n) == getattr(b, n) for n in ("request", "kind", "synthetic", "trained_on", "scores", "seconds", "steps_run", "signal"))
    return pictures and facts


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


@pytest.mark.parametrize(("place", "bits"), [(8, 0x01), (10, 0x40), (10, 0x02), (16, 0xFF), (42, 0x01)])
def test_a_flipped_bit_in_the_archives_directory_is_computed_again(tmp_path, result, request_, place, bits):
    """The flags, where one bit says encrypted; the compression method; checksum and place."""
    content, at = stored(tmp_path, result)
    content[at + place] ^= bits
    not_read(tmp_path, request_, content)


def test_a_size_too_small_in_the_archives_directory_is_computed_again(tmp_path, result, request_):
    """One too large does no harm: what is packed knows where it ends."""
    content, at = stored(tmp_path, result)
    size = slice(at + 20, at + 24)
    content[size] = (int.from_bytes(content[size], "little") // 2).to_bytes(4, "little")
    not_read(tmp_path, request_, content)


def stored(folder, result):
    """A stored result's bytes, and where its archive's directory begins."""
    memory = Store(folder)
    memory.put(result)
    content = bytearray(memory.path(result.request).read_bytes())
    return content, content.index(b"PK\x01\x02")


def not_read(folder, request_, content):
    memory = Store(folder)
    memory.path(request_).write_bytes(content)
    assert memory.get(request_) is None
    assert not memory.path(request_).exists()


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
