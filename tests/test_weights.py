"""Loading a Versatile Diffusion: from every place and form it is published in, part by part, and what is said when a part is wrong."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel  # noqa: TID251 - what the published file holds
from full_size import SMALL, WEIGHTS, as_legacy
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from havir_explorer.diffuse import parts, source, tensors, weights
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.errors import DeviceOutOfMemory, RequestError, WeightsInvalid, WeightsMissing

pytestmark = pytest.mark.usefixtures("own_cache")
TOWERS = ("image_encoder", "text_encoder", "image_feature_extractor", "tokenizer")


def same(left: VersatileDiffusion, right: VersatileDiffusion) -> bool:
    pairs = ((left.unet.state_dict(), right.unet.state_dict()), (left.vae.state_dict(), right.vae.state_dict()))
    extras = all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("empty_image", "empty_text", "preview_map"))
    return extras and all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def test_what_is_loaded_is_what_the_files_hold(checkpoint):
    model = weights.load(checkpoint)
    image, text = model.unet.flows()
    for part, found in (("image_unet", image), ("text_unet", text), ("vae", model.vae.state_dict())):
        held = load_file(checkpoint / WEIGHTS[part])
        assert all(torch.equal(value, held[name]) for name, value in found.items())
    assert "conv_in.weight" in load_file(checkpoint / WEIGHTS["text_unet"]), "the file holds what no picture needs"
    assert not any(p.is_meta or p.requires_grad for module in (model.unet, model.vae) for p in module.parameters())


def test_the_text_unet_of_the_published_class_gives_its_transformer_blocks(checkpoint):
    """diffusers' own text UNet, whole: only its transformer blocks are read, each into the image block's counterpart."""
    sizes = {name: value for name, value in SMALL.unet.items() if name not in {"sample_size", "in_channels", "out_channels"}}
    blocks = {name: tuple(kind.replace("2D", "Flat") for kind in sizes.pop(name)) for name in ("down_block_types", "up_block_types")}
    flat = UNetFlatConditionModel(in_channels=24, out_channels=24, **blocks, **sizes)
    shutil.rmtree(checkpoint / "text_unet")
    flat.save_pretrained(checkpoint / "text_unet")
    image, text = weights.load(checkpoint).unet.flows()
    state = flat.state_dict()
    assert set(text) == {name for name in state if ".attentions." in name} == {name for name in image if ".attentions." in name}
    assert len(text) < len(state) - 20
    assert all(torch.equal(value, state[name]) for name, value in text.items())


def test_tensors_that_are_not_asked_for_are_not_read(checkpoint, monkeypatch):
    read = []
    ours = tensors.read
    monkeypatch.setattr(tensors, "read", lambda file, names, **place: read.extend((file.parent.name, n) for n in names) or ours(file, names, **place))
    weights.load(checkpoint)
    assert {part for part, _ in read} >= {"text_unet", "image_unet", "vae"}
    assert all(".attentions." in name for part, name in read if part == "text_unet")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_legacy_files_and_names_load_as_the_same_model(original, checkpoint, variant):
    as_legacy(checkpoint, variant=variant)
    assert not list(checkpoint.glob("*/*.safetensors"))
    old, new = weights.load(checkpoint, variant=variant[1:] or None), weights.load(original)
    assert same(old, new)
    assert np.array_equal(old.embed_texts(["a b"]), new.embed_texts(["a b"]))


def test_legacy_files_of_before_2020_load_too(original, checkpoint):
    as_legacy(checkpoint)
    for file in checkpoint.glob("*/*.bin"):
        torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)  # noqa: TID251 - written one line above
    assert same(weights.load(checkpoint), weights.load(original))


def test_a_legacy_file_that_would_run_code_is_refused(checkpoint, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    as_legacy(checkpoint)
    torch.save({"conv_in.weight": Trap()}, checkpoint / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsInvalid, match=r"part vae of the .*vae/diffusion_pytorch_model\.bin"):
        weights.load(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_a_variant_is_chosen_by_name_or_because_it_is_the_only_one(original, checkpoint):
    half = {part: load_file(checkpoint / name) for part, name in WEIGHTS.items()}
    for part, name in WEIGHTS.items():
        save_file({key: value.half() for key, value in half[part].items()}, (checkpoint / name).with_suffix(".fp16.safetensors"))
    assert same(weights.load(checkpoint), weights.load(original)), "plain files are preferred"
    chosen = weights.load(checkpoint, variant="fp16")
    assert torch.equal(chosen.vae.state_dict()["decoder.conv_in.weight"], half["vae"]["decoder.conv_in.weight"].half().float())
    for name in WEIGHTS.values():
        (checkpoint / name).unlink()
    assert same(weights.load(checkpoint), chosen)
    with pytest.raises(WeightsMissing, match=r"expected vae/diffusion_pytorch_model\.bf16\.safetensors"):
        weights.load(checkpoint, variant="bf16")


FORMATS = [("float32", torch.float32, torch.float32), ("fp16", torch.float16, torch.float32), ("bf16", torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype", "autoencoder"), FORMATS)
def test_number_formats_go_by_name(original, name, dtype, autoencoder):
    model = weights.load(original, dtype=name)
    assert {p.dtype for p in model.unet.parameters()} == {dtype} == {model.dtype}
    assert {p.dtype for p in model.vae.parameters()} == {autoencoder}, "float16 has not the range an autoencoder needs"
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert model.clip("text_encoder")[0].dtype == dtype
    assert np.isfinite(model.embed_images(picture)).all()
    assert model.decode_latents(model.encode_latents(picture)).shape == picture.shape


def test_the_autoencoder_does_not_overflow_in_float16(checkpoint):
    file = checkpoint / WEIGHTS["vae"]
    state = load_file(file)
    state["decoder.mid_block.resnets.0.conv1.bias"] += 1e5  # beyond the range of float16, lost again in the next normalisation
    save_file(state, file)
    model, latents = weights.load(checkpoint, dtype="float16"), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(model.decode_latents(latents), weights.load(checkpoint).decode_latents(latents))
    with torch.inference_mode():
        assert not model.vae.half().decode(latents.half()).sample.isfinite().all()


def test_an_unknown_number_format_or_device_is_a_sentence(original):
    with pytest.raises(RequestError, match=r"'int4' is not one .* float32, float16 or bfloat16"):
        weights.load(original, dtype="int4")
    with pytest.raises(RequestError, match=r"device 'cuda:77' was asked for, but this machine has .*cpu"):
        weights.load(original, device="cuda:77")


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("unable to mmap 3438167534 bytes from file: Cannot allocate memory (12)")])
@pytest.mark.parametrize("where", ["safe_open", "Kept"])
def test_a_computer_without_room_for_the_weights_is_a_sentence(original, monkeypatch, fault, where):
    def full(*_):
        raise fault

    monkeypatch.setattr(tensors, where, full)
    with pytest.raises(DeviceOutOfMemory, match=r"cpu has no room for the Versatile Diffusion at .*half precision"):
        weights.load(original)


def test_the_cast_changes_one_tensor_at_a_time(original, monkeypatch):
    """Files are opened anew every so many bytes: what was read from them must not pile up beside what is kept."""
    opened = []
    ours = tensors.safe_open
    monkeypatch.setattr(tensors, "safe_open", lambda *a: opened.append(a) or ours(*a))
    monkeypatch.setattr(tensors, "_AT_ONCE", 1)
    found = tensors.read(original / WEIGHTS["vae"], ["decoder.conv_in.weight", "decoder.conv_in.bias"], device=torch.device("cpu"), dtype=torch.float16)
    assert len(opened) == 1 + 3  # the header; one file a tensor; the empty rest
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_the_loaded_copy_outlives_its_files(checkpoint, original):
    model = weights.load(checkpoint)
    for name in WEIGHTS.values():
        with (checkpoint / name).open("r+b") as file:
            file.truncate(100)
    assert same(model, weights.load(original))


# The hub's cache


@pytest.fixture
def hub(checkpoint, tmp_path, monkeypatch) -> Path:
    """The hub's cache as its library leaves it: names are links to blobs, a reference names the commit."""
    root = tmp_path / "hub"
    repository, commit = root / "models--some-lab--vd", "c" * 40
    for number, file in enumerate(path for path in checkpoint.rglob("*") if path.is_file()):
        blob, link = repository / "blobs" / f"{number:064x}", repository / "snapshots" / commit / file.relative_to(checkpoint)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blob)
        link.symlink_to(blob)
    for name in ("main", "fp16"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return root


@pytest.mark.parametrize("name", ["some-lab/vd", "some-lab/vd@fp16", f"some-lab/vd@{'c' * 40}"])
def test_a_hub_id_is_read_from_the_hubs_cache_without_a_network(hub, original, name):
    assert same(weights.load(name), weights.load(original))


def test_a_hub_id_that_is_not_there_says_what_to_do(hub):
    for name in ("other-lab/vd", "some-lab/vd@older"):
        with pytest.raises(WeightsMissing) as caught:
            weights.load(name)
        said = str(caught.value)
        assert f"havir weights fetch {name}" in said
        assert str(hub) in said
        assert "image_unet/config.json" in said
        assert "vae/diffusion_pytorch_model.safetensors" in said
    next((hub / "models--some-lab--vd").glob("snapshots/*/vae/config.json")).unlink()
    with pytest.raises(WeightsMissing, match=r"lacks its part vae: expected vae/config\.json.* havir weights fetch some-lab/vd$"):
        weights.load("some-lab/vd")


def test_demo_is_the_shipped_folder():
    assert source.locate("demo").root == weights.demo_folder()
    assert weights.load().latent_shape == (4, 16, 16)


# The towers


def test_towers_are_read_when_first_used_and_once(original, monkeypatch):
    weights.load(original)  # the extras are in the cache now
    filled = []
    ours = parts.fill
    monkeypatch.setattr(parts, "fill", lambda source, part, *rest: filled.append(part) or ours(source, part, *rest))
    model = weights.load(original)
    assert filled == ["vae"]
    assert all(p.is_meta for p in model.image_encoder.parameters())
    picture = np.zeros((1, 16, 16, 3), np.uint8)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(model.embed_images(picture))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert filled == ["vae", "image_encoder"]
    assert len(found) == 8
    assert all(np.array_equal(one, found[0]) for one in found)
    assert np.allclose(found[0][0, 0] @ found[0][0, 0], 1, atol=1e-5)


def test_what_the_towers_say_is_computed_once_and_remembered(original, own_cache):
    first = weights.load(original)
    kept = list((own_cache / "generators").iterdir())
    assert [file.suffix for file in kept] == [".safetensors"]
    grey = np.full((1, 16, 16, 3), 128, np.uint8)
    assert np.array_equal(first.empty_image.numpy(), first.embed_images(grey))
    assert np.array_equal(first.empty_text.numpy(), first.embed_texts([""]))
    image, text = first.unconditional("zeros")
    assert image.shape == first.empty_image.shape
    assert not image.any()
    assert not text.any()
    assert first.unconditional()[1] is first.empty_text
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    assert same(weights.load(original), first), "a damaged memory is made anew"


@pytest.mark.parametrize("part", TOWERS)
def test_a_missing_tower_is_named_when_it_is_first_needed(checkpoint, part):
    weights.save(weights.load(checkpoint), checkpoint, torch.float32)  # with its extras beside it
    shutil.rmtree(checkpoint / part)
    model = weights.load(checkpoint)
    ask = model.embed_images if part.startswith("image") else model.embed_texts
    with pytest.raises(WeightsMissing, match=rf"has no part {part}, which .* need: expected {part}/.*havir weights fetch"):
        ask(np.zeros((1, 16, 16, 3), np.uint8) if part.startswith("image") else ["a"])
    assert model.sees() is (part in {"text_encoder", "tokenizer"})


def test_half_a_tower_is_a_fault(checkpoint):
    weights.save(weights.load(checkpoint), checkpoint, torch.float32)
    (checkpoint / WEIGHTS["image_encoder"]).unlink()
    model = weights.load(checkpoint)
    with pytest.raises(WeightsMissing, match=r"lacks its part image_encoder: expected image_encoder/model\.safetensors"):
        model.sees()
    with pytest.raises(WeightsMissing, match=r"lacks its part image_encoder: expected image_encoder/model\.safetensors"):
        model.image_features(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_checkpoint_survives_the_disk(checkpoint, tmp_path):
    model = weights.load(checkpoint)
    weights.save(model, tmp_path / "again", torch.float32)
    again = weights.load(tmp_path / "again")
    assert same(again, model)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    for ask in ("encode_latents", "embed_images", "image_features"):
        assert np.allclose(getattr(again, ask)(pictures), getattr(model, ask)(pictures), atol=1e-6)
    assert np.allclose(again.embed_texts(["a b", ""]), model.embed_texts(["a b", ""]), atol=1e-6)
