"""Downloading a checkpoint, from a hub of the test's own on this machine: only what is used, resumed, and in words where it fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from full_size import WEIGHTS
from huggingface_hub import constants, file_download

from havir_explorer.cli import command
from havir_explorer.diffuse import fetch, weights
from havir_explorer.errors import WeightsInvalid, WeightsMissing

COMMIT = "d" * 40
BRAKE = 20_000


class Hub(ThreadingHTTPServer):
    """Serves one repository, ``some-lab/vd``, as the hub does; when ``broken``, connections end early and no more comes."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.broken, self.ranges = root, [], False, []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/some-lab/vd"):
            self.reply(json.dumps({"id": "some-lab/vd", "sha": COMMIT, "siblings": self.files()}).encode(), {})
        elif path.startswith("/some-lab/vd/resolve/") and (file := self.server.root / path.split("/", 5)[5]).is_file():
            self.send_file(file, body=body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def files(self) -> list[dict[str, object]]:
        files = sorted(path for path in self.server.root.rglob("*") if path.is_file())
        about = {path: path.read_bytes() for path in files}
        big = {path: {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}} for path, content in about.items()}
        names = {path: str(path.relative_to(self.server.root)) for path in files}
        return [{"rfilename": names[p], "size": len(about[p]), **(big[p] if p.suffix == ".safetensors" else {})} for p in files]

    def send_file(self, file: Path, *, body: bool) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = 0
        if body:
            self.server.asked.append(str(file.relative_to(self.server.root)))
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").partition("-")[0] or 0) if asked else 0
            self.server.ranges.append(start)
        self.reply(content[start:], headers | ({"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}), body=body)

    def reply(self, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.server.broken and len(content) > BRAKE:
            self.wfile.write(content[: 0 if "Content-Range" in headers else BRAKE])
            self.wfile.flush()
            self.connection.close()
        elif body:
            self.wfile.write(content)


@pytest.fixture
def hub(original, own_cache, tmp_path, monkeypatch):
    root = Path(shutil.copytree(original, tmp_path / "published"))
    for name in ("README.md", "vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "optimizer/state.bin", "assets.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not needed")
    server = Hub(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what has arrived is kept by the chunk
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_what_is_used_is_downloaded_and_it_loads(hub, tmp_path, capsys):
    to = tmp_path / "vd"
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(to)]) == 0
    printed = capsys.readouterr()
    assert f"use it with --generator {to}" in printed.out
    assert "GB, to" in printed.err.splitlines()[0], "the size is said first"
    assert {"image_unet/config.json", "tokenizer/tokenizer.json", "README.md", *WEIGHTS.values()} <= set(hub.asked)
    assert not {"vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "optimizer/state.bin", "assets.png"} & set(hub.asked)
    assert weights.load(to).side == 16
    record = json.loads((to / "havir_record.json").read_text())
    assert record["made_by"] == f"havir weights fetch some-lab/vd --to {to}"
    assert set(record["sha256"]) == set(WEIGHTS.values())
    assert command(["weights", "check", str(to), "--json"]) == 0
    parts = {part["part"]: part for part in json.loads(capsys.readouterr().out)["parts"]}
    assert parts["vae"]["compared_with"] == "the folder's record"


def test_without_a_folder_it_goes_to_the_cache_folder_where_its_id_is_found(hub, own_cache, capsys):
    assert command(["weights", "fetch", "some-lab/vd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(own_cache / "weights" / "some-lab--vd")
    assert weights.load("some-lab/vd").side == 16
    (own_cache / "weights" / "some-lab--vd" / "vae" / "config.json").unlink()
    with pytest.raises(WeightsMissing, match=r"lacks its part vae.* havir weights fetch some-lab/vd$"):
        weights.load("some-lab/vd")
    assert command(["weights", "fetch", "some-lab/vd"]) == 0
    assert weights.load("some-lab/vd").side == 16


def test_half_precision_files_are_mended_with_half_precision_files(hub, own_cache):
    for file in [*hub.root.glob("*/diffusion_pytorch_model.safetensors"), *hub.root.glob("*/model.safetensors")]:
        file.replace(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert command(["weights", "fetch", "some-lab/vd", "--variant", "fp16"]) == 0
    hub.asked.clear()
    (own_cache / "weights" / "some-lab--vd" / "text_unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"lacks its part text_unet.* havir weights fetch some-lab/vd --variant fp16$"):
        weights.load("some-lab/vd")
    assert command(["weights", "fetch", "some-lab/vd", "--variant", "fp16"]) == 0
    assert hub.asked == ["text_unet/diffusion_pytorch_model.fp16.safetensors"]
    assert weights.load("some-lab/vd").side == 16


def test_an_interrupted_download_goes_on_at_its_last_byte(hub, tmp_path, capsys, monkeypatch):
    to = tmp_path / "vd"
    hub.broken = True
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between the library's own attempts
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(to)]) == 2
    assert "goes on where it stopped" in capsys.readouterr().err
    came = [file.stat().st_size for file in to.rglob(".*.part")]
    assert came == [BRAKE // 4096 * 4096]
    hub.broken, hub.ranges = False, []
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(to)]) == 0
    assert came[0] in hub.ranges
    assert not list(to.rglob("*.part"))
    assert weights.load(to).side == 16
    hub.asked.clear()
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(to)]) == 0
    assert hub.asked == [], "what is there is not downloaded again"


def test_a_damaged_file_is_downloaded_again(hub, tmp_path, capsys):
    to = tmp_path / "vd"
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(to)]) == 0
    file = to / WEIGHTS["vae"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert command(["weights", "check", str(to)]) == 2
    said = capsys.readouterr().err
    assert "SHA-256" in said
    assert f"havir weights fetch some-lab/vd --to {to}" in said, "the sentence ends with what mends it"
    hub.asked.clear()
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(to)]) == 0
    assert hub.asked == [WEIGHTS["vae"]]
    assert command(["weights", "check", str(to)]) == 0


def test_a_file_that_arrives_damaged_is_thrown_away(hub, tmp_path, monkeypatch):
    plan = fetch.plan("some-lab/vd")
    files = tuple(replace(file, sha256="0" * 64) if file.name == WEIGHTS["vae"] else file for file in plan.files)
    with pytest.raises(WeightsInvalid, match="arrived damaged"):
        fetch.download(replace(plan, files=files), tmp_path / "vd", lambda *_: None)
    assert not list((tmp_path / "vd" / "vae").glob("*.part"))
    assert not (tmp_path / "vd" / WEIGHTS["vae"]).exists()


def test_progress_is_the_share_of_all_bytes(hub, tmp_path):
    seen = []
    fetch.download(fetch.plan("some-lab/vd"), tmp_path / "vd", lambda share, line: seen.append((share, line)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert {line.split(",")[0] for _, line in seen} >= set(WEIGHTS.values())
    assert len({share for share, line in seen if line.startswith(WEIGHTS["image_unet"])}) > 10, "it moves within a file"


def test_what_the_hub_does_not_have_is_said(hub, tmp_path, capsys):
    assert command(["weights", "fetch", "other-lab/vd", "--to", str(tmp_path / "vd")]) == 2
    assert "the hub has no checkpoint 'other-lab/vd'" in capsys.readouterr().err
    assert command(["weights", "fetch", "not an id", "--to", str(tmp_path / "vd")]) == 2
    assert "'not an id'" in capsys.readouterr().err
    shutil.rmtree(hub.root / "text_unet")
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(tmp_path / "vd")]) == 2
    assert "lacks its part text_unet, expected text_unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "vd").exists()


def test_no_room_is_said_before_anything_comes(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert command(["weights", "fetch", "some-lab/vd", "--to", str(tmp_path / "vd")]) == 2
    assert "make room" in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_says_which_files_to_put_where(own_cache, tmp_path, capsys, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert command(["weights", "fetch", "--to", str(tmp_path / "vd")]) == 2
    said = capsys.readouterr().err
    assert "cannot reach the hub at http://127.0.0.1:9 for 'shi-labs/versatile-diffusion'" in said
    assert "image_unet/config.json" in said
    assert "tokenizer/vocab.json" in said


OLD = ("image_unet", "text_unet", "vae")


def test_of_each_part_one_weight_file_is_chosen():
    small = ["image_unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "image_encoder/config.json", "text_encoder/config.json"]
    small += ["image_feature_extractor/preprocessor_config.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    legacy = [f"{part}/diffusion_pytorch_model.bin" for part in OLD] + [f"{part}/pytorch_model.bin" for part in ("image_encoder", "text_encoder")]
    assert set(fetch.wanted("x", [*small, *legacy])) == {*small, *legacy}
    newer = [*small, *legacy, "vae/diffusion_pytorch_model.safetensors"]
    assert set(newer) - set(fetch.wanted("x", newer)) == {"vae/diffusion_pytorch_model.bin"}
    half = [name.replace(".bin", ".fp16.bin") for name in legacy]
    assert set(fetch.wanted("x", [*newer, *half], "fp16")) == {*small, *half}
    with pytest.raises(WeightsInvalid, match=r"lacks its part vae, expected vae/config\.json"):
        fetch.wanted("x", [name for name in newer if name != "vae/config.json"])
