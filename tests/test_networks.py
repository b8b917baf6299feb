"""Feature networks: checkpoints in their published layouts are found and loaded; damaged ones are said to be."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from havir_explorer.errors import RequestError, SourceUnavailable, WeightsInvalid
from havir_explorer.evaluate import scoring
from havir_explorer.measure import fetch as fetching
from havir_explorer.measure import networks
from havir_explorer.measure.protocols import ME2
from havir_explorer.records import FloatArray


@pytest.fixture
def shown() -> FloatArray:
    return np.random.default_rng(0).uniform(size=(3, 96, 96, 3)).astype(np.float32)


def initialised(module: nn.Module) -> nn.Module:
    """The module with weights that differ from each other, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


def normalised(shown: FloatArray, network: networks.Network) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (network.mean, network.std))
    return (torch.from_numpy(shown).permute(0, 3, 1, 2) - mean) / std


PUBLISHED = [
    ("alexnet", "features.4", models.alexnet),
    ("alexnet", "features.11", models.alexnet),
    ("inception", "avgpool", lambda: models.inception_v3(init_weights=False, transform_input=True)),
    ("efficientnet-v1", "avgpool", models.efficientnet_b1),
    ("efficientnet-v2", "avgpool", models.efficientnet_b1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer", "build"), PUBLISHED, ids=[f"{p[0]} {p[1]}" for p in PUBLISHED])
def test_a_torchvision_checkpoint_reads_as_torchvision_reads_it(name, layer, build, shown: FloatArray, tmp_path: Path) -> None:
    wanted, module = networks.network(name), initialised(build())
    torch.save(module.state_dict(), tmp_path / wanted.file)
    read = networks.features(wanted, wanted.load(networks.find(wanted, tmp_path), "cpu"), layer, batch=2)
    with torch.no_grad():
        expected = create_feature_extractor(module, [layer])(normalised(shown, wanted))[layer].flatten(1)
    assert torch.allclose(torch.from_numpy(read(shown)), expected, atol=1e-4)


def test_files_have_the_names_torchs_hub_gives_them() -> None:
    assert [networks.network(n).file for n in ("alexnet", "inception", "efficientnet-v1", "efficientnet-v2", "swav")] == [
        "alexnet-owt-7be5be79.pth",
        "inception_v3_google-0cc3c7bd.pth",
        "efficientnet_b1_rwightman-bac287d4.pth",
        "efficientnet_b1-c27df63c.pth",
        "swav_800ep_pretrain.pth.tar",
    ]


def test_swav_is_a_resnet_whose_keys_begin_with_module_and_whose_heads_are_left_out(shown: FloatArray, tmp_path: Path) -> None:
    shown = shown[:1, :33, :33]
    wanted, module = networks.network("swav"), models.resnet50().eval()
    state = {f"module.{key}": value for key, value in module.state_dict().items() if not key.startswith("fc.")}
    heads = {"module.projection_head.0.weight": torch.zeros(2, 2048), "module.prototypes.weight": torch.zeros(3, 2)}
    torch.save({**state, **heads}, tmp_path / wanted.file)
    read = networks.features(wanted, wanted.load(tmp_path / wanted.file, "cpu"), "avgpool")
    module.fc = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(read(shown)), module(normalised(shown, wanted)), atol=1e-4)


def test_a_checkpoint_in_the_folder_brings_its_metric(tmp_path: Path) -> None:
    state = models.resnet50().state_dict()
    torch.save({f"module.{key}": value for key, value in state.items() if not key.startswith("fc.")}, tmp_path / networks.network("swav").file)
    present, missing = scoring.available(ME2, None, tmp_path)
    assert [m.metric.name for m in present] == ["PixCorr", "SSIM", "SwAV"]
    assert "SwAV" not in {m.metric for m in missing}
    stimuli, pictures = np.random.default_rng(2).integers(0, 256, (2, 2, 40, 40, 3), dtype=np.uint8)
    ready = scoring.gauges(ME2, present, stimuli, side=40, folder=tmp_path)
    assert np.allclose(scoring.score(stimuli, ready)["SwAV"], 0, atol=1e-5)
    assert (scoring.score(pictures, ready)["SwAV"] > 1e-4).all()


def test_clip_is_the_image_tower_of_an_open_clip_checkpoint(tiny_tower: Path, tmp_path: Path) -> None:
    wanted = replace(networks.network("clip-vit-l-14"), load=partial(networks._open_clip, "tiny-tower"))
    model = open_clip.create_model("tiny-tower", pretrained=str(tiny_tower)).eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / wanted.file)
    shown = np.random.default_rng(1).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    read = networks.features(wanted, wanted.load(networks.find(wanted, tmp_path), "cpu"))
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(read(shown)), model.encode_image(normalised(shown, wanted)), atol=1e-5)


@pytest.mark.parametrize(("name", "model"), [("clip-vit-l-14", "ViT-L-14-quickgelu"), ("clip-vit-b-32", "ViT-B-32-quickgelu")])
def test_openais_clip_is_configured_as_openai_trained_it(name: str, model: str) -> None:
    assert networks.network(name).load.args == (model,)
    assert open_clip.get_model_config(model)["quick_gelu"] is True
    assert open_clip.get_pretrained_cfg(model, "openai")["hf_hub"].rstrip("/") == networks.network(name).hub[0]


def test_a_clip_in_the_hugging_face_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "cached.safetensors"
    asked = []
    monkeypatch.setattr(networks.huggingface_hub, "try_to_load_from_cache", lambda *names: asked.append(names) or str(kept))
    assert networks.find(networks.network("clip-vit-l-14")) == kept
    assert asked == [("timm/vit_large_patch14_clip_224.openai", "open_clip_model.safetensors")]
    assert networks.find(networks.network("clip-vit-l-14"), tmp_path) is None  # a folder that is named is the only one
    assert networks.find(networks.network("alexnet")) is None


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    wanted = networks.network("alexnet")
    file = tmp_path / wanted.file
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsInvalid, match=f"the checkpoint {file} cannot be read"):
        wanted.load(file, "cpu")
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsInvalid, match="fetch it again"):
        wanted.load(file, "cpu")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "alexnet-owt-7be5be79.pth"
    torch.save({"weight": Path("x")}, file)
    with pytest.raises(WeightsInvalid, match="cannot be read"):
        networks.network("alexnet").load(file, "cpu")


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(RequestError, match="no feature network is called 'alex'; nearest: alexnet"):
        networks.network("alex")


# Fetching

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 5)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Serves CONTENT with ranges; closes the connection after ``cut`` bytes when that is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            self.server.starts.append(start)
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : self.server.cut])

        def log_message(self, *_words: object) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.starts, found.cut = [], None
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def remote(server: ThreadingHTTPServer) -> networks.Network:
    digits = hashlib.sha256(CONTENT).hexdigest()[:8]
    return replace(networks.network("alexnet"), file=f"small-{digits}.pth", url=f"http://127.0.0.1:{server.server_port}/small.pth")


def test_a_fetch_goes_on_where_it_was_cut(server: ThreadingHTTPServer, remote: networks.Network, tmp_path: Path) -> None:
    server.cut = 2**20 + 17
    with pytest.raises(SourceUnavailable, match="run the same command again"):
        fetching.fetch(remote, tmp_path / "new", lambda share, line: None)
    assert not (tmp_path / "new" / remote.file).exists()
    server.cut, shares = None, []
    file = fetching.fetch(remote, tmp_path / "new", lambda share, line: shares.append(share))
    assert file.read_bytes() == CONTENT
    assert server.starts == [0, 2**20 + 17]
    assert shares[-1] == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert fetching.fetch(remote, tmp_path / "new", lambda share, line: None) == file
    assert len(server.starts) == 2  # what is there is not fetched again


def test_a_fetch_stopped_after_its_last_byte_is_whole(server: ThreadingHTTPServer, remote: networks.Network, tmp_path: Path) -> None:
    (tmp_path / f".{remote.file}.part").write_bytes(CONTENT)
    assert fetching.fetch(remote, tmp_path, lambda share, line: None).read_bytes() == CONTENT
    assert server.starts == [len(CONTENT)]


def test_a_damaged_fetch_is_thrown_away(server: ThreadingHTTPServer, remote: networks.Network, tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid, match="arrived damaged"):
        fetching.fetch(replace(remote, file="small-00000000.pth"), tmp_path, lambda share, line: None)
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_said(tmp_path: Path, remote: networks.Network, server: ThreadingHTTPServer) -> None:
    away = replace(remote, url="http://127.0.0.1:9/small.pth")
    with pytest.raises(SourceUnavailable, match=f"copy the file to {tmp_path / remote.file}"):
        fetching.fetch(away, tmp_path, lambda share, line: None)
