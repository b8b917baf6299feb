"""The parts of fetching that need no whole tree: the plan of keys, checks of files, and pictures out of bricks of any layout."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from boto3.s3.transfer import TransferConfig
from s3_server import BUCKET, Server

from havir_explorer.cli import command
from havir_explorer.cli import fetch as cli_fetch
from havir_explorer.cli.show import numbers
from havir_explorer.data.design import DESIGN, STIM_INFO
from havir_explorer.data.fetch import bucket, folder, pictures, transfer, verify
from havir_explorer.data.fetch.bucket import Bucket, Remote
from havir_explorer.data.fetch.keys import ATLASES, BRICK_KEY, SESSIONS, Order, most_pictures, plan
from havir_explorer.data.fetch.transfer import Piece, Tally, download
from havir_explorer.errors import Cancelled, DataInvalid, RequestError, SourceUnavailable

FUNC = "nsddata/ppdata/subj03/func1pt8mm"


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


def test_the_plan_names_the_keys_of_the_bucket():
    wanted = plan(Order(("subj03",), (2, 32), images="needed", extras=("mni", "surfaces")))
    keys = [one.key for one in wanted]
    assert len(keys) == len(set(keys))
    needed = [one.key for one in wanted if not one.optional]
    layers = ("func1pt8-to-layerB1", "func1pt8-to-layerB2", "func1pt8-to-layerB3", "white-to-fsaverage")
    transforms = [f"{side}.{name}.mgz" for side in ("lh", "rh") for name in layers]
    betas = "nsddata_betas/ppdata/subj03/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    assert needed == [
        DESIGN.as_posix(),
        STIM_INFO.as_posix(),
        *(f"{FUNC}/roi/{side}nsdgeneral.nii.gz" for side in ("", "lh.", "rh.")),
        *(f"nsddata/ppdata/subj03/transforms/{name}" for name in [*transforms, "func1pt8-to-MNI.nii.gz"]),
        f"{betas}/ncsnr.nii.gz",
        f"{betas}/betas_session02.hdf5",
        f"{betas}/betas_session32.hdf5",
        BRICK_KEY,
    ]
    rois = [one for one in wanted if one.key.startswith(f"{FUNC}/roi/")]
    assert len(rois) == 39  # as many as the bucket holds
    assert all(sum(one.family == f"{atlas} of subj03" for one in wanted) == 4 for atlas in ATLASES)
    assert "nsddata/freesurfer/subj03/label/floc-faces.mgz.ctab" in keys
    assert {f"nsddata/freesurfer/{who}/surf/rh.{name}" for who in ("subj03", "fsaverage") for name in ("inflated", "full.flat.patch.3d")} <= set(keys)


def test_the_plan_of_a_smaller_order():
    keys = [one.key for one in plan(Order(("subj08",), preparation="b2"))]
    assert sum("/betas_fithrf/betas_session" in key for key in keys) == 30
    assert BRICK_KEY not in keys
    assert not any("surf/" in key or "MNI" in key for key in keys)


@pytest.mark.parametrize(
    ("images", "sessions", "count"), [("none", (1,), 0), ("shared", (1,), 1000), ("needed", (1, 2), 3000), ("needed", (), 20000), ("all", (1,), 73000)]
)
def test_pictures_an_order_comes_to_at_most(images, sessions, count):
    assert most_pictures(Order(("subj01", "subj02"), sessions, images=images)) == count


@pytest.mark.parametrize(("text", "found"), [("1", (1,)), ("1-3,7", (1, 2, 3, 7)), ("3,1-3", (3, 1, 2)), ("0 - 2", (0, 1, 2))])
def test_numbers_and_ranges(text, found):
    assert numbers(text, "--sessions") == found


@pytest.mark.parametrize("text", ["", ",", "one", "-1", "2-1", "1--2", "1.5", "0-99999999999", "²"])
def test_numbers_that_are_none(text):
    with pytest.raises(RequestError, match=r"^--sessions "):
        numbers(text, "--sessions")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--subjects", "9"), "--subjects takes subj01, subj02, subj03, subj04, subj05, subj06, subj07, subj08; got 'subj09'"),
        (("--subjects", ","), "--subjects names no subject"),
        (("--sessions", "41"), "subj01 has sessions 1 to 40, and --sessions asks for 41"),
        (("--subjects", "1,8", "--sessions", "1-31"), "subj08 has sessions 1 to 30, and --sessions asks for 31"),
        (("--sessions", "3-1"), "--sessions takes numbers and ranges such as 0-99 or 1,4-6; got '3-1'"),
        (("--images", "some"), "--images takes none, shared, needed, all; got 'some'"),
        (("--preparation", "b4"), "--preparation takes b1, b2, b3; got 'b4'"),
        (("--extras", "hats"), "--extras takes surfaces, mni; got 'hats'"),
        (("--endpoint", "localhost"), "--endpoint takes the address of an S3 server"),
    ],
)
def test_orders_that_cannot_be(capsys, tmp_path, arguments, sentence):
    asked = ("--subjects", "1", "--sessions", "1-2", "--to", str(tmp_path / "tree"), "--accept-nsd-terms", *arguments)
    assert command(["fetch", "nsd", *asked]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "found"), [("1,2", ("subj01", "subj02")), ("1, 5-7", ("subj01", "subj05", "subj06", "subj07")), ("subj03", ("subj03",)), ("all", tuple(SESSIONS))]
)
def test_subjects_by_numbers_ranges_and_names(text, found):
    assert cli_fetch._people(text) == found


def test_a_bucket_that_may_be_read_but_not_listed(server):
    server.unlisted = True
    sentence = (
        "denies access to the list of nsddata, which tells sizes and checksums; it is public, so a proxy or the server given with --endpoint is in the way"
    )
    with pytest.raises(SourceUnavailable, match=sentence):
        Bucket(server.endpoint).listing(["nsddata/file"])
    server.heal()


def test_an_upload_in_parts_is_checked_by_its_parts(server, tmp_path):
    content = np.random.default_rng(0).bytes(9 * 2**20)
    (tmp_path / "there.bin").write_bytes(content)
    parts = TransferConfig(multipart_threshold=2**20, multipart_chunksize=8 * 2**20)
    server.client.upload_file(str(tmp_path / "there.bin"), BUCKET, "there.bin", ExtraArgs={"ACL": "public-read"}, Config=parts)
    here = Bucket(server.endpoint)
    remote = here.listing(["there.bin"])["there.bin"]
    assert remote.etag.endswith("-2")
    part = download(here, transfer.whole(remote, tmp_path / "to"), Tally(remote.size), threading.Event())
    assert part.read_bytes() == content
    assert verify.check(part, remote) == "MD5 of parts"
    part.write_bytes(content[:-1] + b"?")
    assert verify.check(part, remote) == "size"


def test_files_without_a_checksum_tell_of_themselves(tmp_path):
    volume, betas = tmp_path / "v.nii.gz", tmp_path / "b.hdf5"
    volume.write_bytes(gzip.compress(np.random.default_rng(0).bytes(5000)))
    with h5py.File(betas, "w") as file:
        file["betas"] = np.arange(9000)
    about = {file: Remote(file.name, file.stat().st_size, "unknown") for file in (volume, betas)}
    assert [verify.check(file, about[file]) for file in (volume, betas)] == ["gzip checksum", "header"]
    for file in (volume, betas):
        whole = file.read_bytes()
        file.write_bytes(whole[:200] + bytes(40) + whole[240:] if file == volume else bytes(40) + whole[40:])
        with pytest.raises(DataInvalid, match=f"{file.name} arrived damaged: it cannot be opened"):
            verify.check(file, about[file])
        file.write_bytes(whole[:-1])
        with pytest.raises(DataInvalid, match=r"arrived damaged: .* bytes came, the bucket holds"):
            verify.check(file, about[file])


def test_an_empty_object(tmp_path):
    (tmp_path / "empty").touch()
    assert verify.check(tmp_path / "empty", Remote("empty", 0, hashlib.md5(b"", usedforsecurity=False).hexdigest())) == "MD5"


LAYOUTS = {
    "contiguous": {},
    "one chunk a picture": {"chunks": (1, 4, 6, 3)},
    "compressed": {"chunks": (1, 4, 6, 3), "compression": "gzip", "shuffle": True},
    "three pictures a chunk": {"chunks": (3, 4, 6, 3), "compression": "gzip"},
    "pieces of pictures": {"chunks": (2, 3, 5, 1)},
}


def brick(file: Path, options: dict) -> np.ndarray:
    values = np.random.default_rng(3).integers(0, 256, (11, 4, 6, 3), dtype=np.uint8)
    with h5py.File(file, "w") as content:
        content.create_dataset("first", data=np.arange(50))
        content.create_dataset("imgBrick", data=values, **options)
    return values


def bring(here: Bucket, remote: Remote, target: Path, ids: list[int]) -> pictures.Layout:
    where = pictures.layout(here, remote, np.array(ids))
    part = download(here, Piece(remote, target, where.spans), Tally(0), threading.Event())
    pictures.assemble(part, where, remote, target)
    return where


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_come_out_of_a_brick_of_any_layout(server, tmp_path, layout):
    there, target = tmp_path / "there.hdf5", tmp_path / "to" / "nsd_stimuli.hdf5"
    values = brick(there, LAYOUTS[layout])
    server.put(BRICK_KEY, there.read_bytes())
    here = Bucket(server.endpoint)
    remote = here.listing([BRICK_KEY])[BRICK_KEY]
    target.parent.mkdir()
    target.with_name(".nsd_stimuli.hdf5.part").write_bytes(b"what a killed fetch was putting together")
    assert pictures.lacking(target, remote, np.array([2, 9])).tolist() == [2, 9]
    for ids in ([2, 9], [0, 10]):
        bring(here, remote, target, ids)
        with h5py.File(target) as file:
            assert file["imgBrick"].shape == values.shape
            held = np.flatnonzero(file["present"][()])
            assert set(ids) <= set(held.tolist())
            assert np.array_equal(file["imgBrick"][held], values[held])
    assert {0, 2, 9, 10} <= set(held.tolist()) < set(range(11))
    assert pictures.lacking(target, remote, np.arange(11)).tolist() == sorted(set(range(11)) - set(held.tolist()))
    assert [path.name for path in target.parent.iterdir()] == ["nsd_stimuli.hdf5"]
    assert target.stat().st_size < 20_000


def test_many_pictures_are_looked_up_in_one_walk(monkeypatch, tmp_path):
    with h5py.File(tmp_path / "brick.hdf5", "w") as file:
        brick = file.create_dataset("imgBrick", (40_000, 1, 1, 3), np.uint8, chunks=(1, 1, 1, 3))
        for number in range(0, 40_000, 2):
            brick.id.write_direct_chunk((number, 0, 0, 0), bytes([number % 251] * 3))
    monkeypatch.setattr(Bucket, "opened", lambda *_: (tmp_path / "brick.hdf5").open("rb"))
    began = time.process_time()
    found = pictures.layout(Bucket("http://localhost:9"), Remote("brick", 1, "x"), np.arange(0, 40_000, 5))
    assert time.process_time() - began < 1, "a walk takes some hundredths, one a picture some seconds"
    assert [corner[0] for corner in found.corners] == list(range(0, 40_000, 10)), "the others were never written"
    content = (tmp_path / "brick.hdf5").read_bytes()
    assert all(content[start:stop] == bytes([corner[0] % 251] * 3) for corner, (start, stop) in zip(found.corners, found.spans, strict=True))


def test_pictures_of_another_release_do_not_count(server, tmp_path):
    there, target = tmp_path / "there.hdf5", tmp_path / "nsd_stimuli.hdf5"
    brick(there, {})
    server.put(BRICK_KEY, there.read_bytes())
    here = Bucket(server.endpoint)
    remote = here.listing([BRICK_KEY])[BRICK_KEY]
    bring(here, remote, target, [1, 2])
    assert pictures.lacking(target, Remote(remote.key, remote.size, "other"), np.array([1, 5])).tolist() == [1, 5]


def test_a_layout_that_is_misread_is_noticed(server, tmp_path, monkeypatch):
    there, target = tmp_path / "there.hdf5", tmp_path / "nsd_stimuli.hdf5"
    brick(there, {})
    server.put(BRICK_KEY, there.read_bytes())
    here = Bucket(server.endpoint)
    remote = here.listing([BRICK_KEY])[BRICK_KEY]
    where = pictures.layout(here, remote, np.array([1]))
    part = tmp_path / "part"
    part.write_bytes(there.read_bytes()[where.spans[0][0] + 1 : where.spans[0][1] + 1])
    with pytest.raises(DataInvalid, match=r"picture 1 of .* is not what the bucket shows.*--images all"):
        pictures.assemble(part, where, remote, target)
    assert not target.exists()


def test_a_brick_that_is_none(server, tmp_path):
    with h5py.File(tmp_path / "there.hdf5", "w") as file:
        file["imgBrick"] = np.zeros((4, 4), np.uint8)
    server.put(BRICK_KEY, (tmp_path / "there.hdf5").read_bytes())
    here = Bucket(server.endpoint)
    with pytest.raises(DataInvalid, match="is not NSD's picture brick"):
        pictures.layout(here, here.listing([BRICK_KEY])[BRICK_KEY], np.array([1]))


def test_patience_with_the_network(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0))
    tally = Tally(0)
    answers = [bucket.Interrupted("once"), bucket.Interrupted("twice"), "there"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert transfer.patiently(ask, tally, threading.Event()) == "there"
    assert tally.phrase == "the network broke, another try in 0 s"
    answers += [bucket.Interrupted(str(number)) for number in range(3)]
    with pytest.raises(bucket.Interrupted, match="2"):
        transfer.patiently(ask, tally, threading.Event())
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        transfer.patiently(ask, tally, stopped)


def test_sizes_for_people():
    assert [folder.size(count) for count in (0, 999, 1000, 1_250_000, 39_560_000_000)] == ["0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "39.6 GB"]
