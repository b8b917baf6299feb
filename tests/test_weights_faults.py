"""What the loader of a Versatile Diffusion says when a part is missing, damaged, renamed or another's: one sentence, with what mends it."""

from __future__ import annotations

import json

import pytest
import torch
from full_size import WEIGHTS, as_legacy
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from havir_explorer.diffuse import source, weights
from havir_explorer.errors import HavirError, WeightsInvalid, WeightsMissing

DRAWN = [*[WEIGHTS[part] for part in ("image_unet", "text_unet", "vae")], "image_unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_missing_file_is_named_with_what_is_there_and_what_mends_it(checkpoint, name):
    part, file = name.split("/")
    (checkpoint / name).rename(checkpoint / part / f"old-{file}")
    with pytest.raises(WeightsMissing) as caught:
        weights.load(checkpoint)
    said = str(caught.value)
    assert f"lacks its part {part}: expected {name}" in said
    assert f"old-{file}" in said
    assert f"havir weights fetch {source.PUBLISHED} --to {checkpoint}" in said
    assert "\n" not in said


def test_links_to_nothing_and_pieces_are_called_so(checkpoint):
    file = checkpoint / WEIGHTS["vae"]
    file.rename(file.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(WeightsMissing, match=r"vae holds config.json, .*-00001-of-00002.safetensors \(a piece: save the part again in one file\); "):
        weights.load(checkpoint)
    file.symlink_to(checkpoint / "blobs" / "gone")
    with pytest.raises(WeightsMissing, match=r"diffusion_pytorch_model.safetensors \(a link to a file that is gone\); "):
        weights.load(checkpoint)


def test_a_renamed_part_is_named(checkpoint):
    (checkpoint / "image_unet").rename(checkpoint / "unet")
    with pytest.raises(WeightsMissing, match=r"lacks its part image_unet: .* but the folder holds .*unet"):
        weights.load(checkpoint)


@pytest.mark.parametrize("part", ["image_unet", "text_unet", "vae"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_named(checkpoint, part, legacy):
    if legacy:
        as_legacy(checkpoint)
    file = next((checkpoint / part).glob("diffusion*"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsInvalid, match=rf"part {part} of the .*{part}/{file.name} is not a readable .*truncated.*havir weights fetch"):
        weights.load(checkpoint)


TENSORS = [("image_unet", "conv_in.weight"), ("text_unet", "mid_block.attentions.0.norm.weight"), ("vae", "decoder.conv_out.bias")]


@pytest.mark.parametrize(("part", "key"), TENSORS)
def test_renamed_and_wrong_shaped_tensors_are_named(checkpoint, part, key):
    file = checkpoint / WEIGHTS[part]
    state = load_file(file)
    moved = key.replace("weight", "wait").replace("bias", "buys")
    renamed = ({moved: state[key]}, f"lacks 1 of .* the first {key}.* holds {moved} instead")
    for damage, expected in (renamed, ({key: torch.zeros(3, 5)}, rf"holds {key} as \(3, 5\), expected")):
        save_file({**{name: value for name, value in state.items() if name != key}, **damage}, file)
        with pytest.raises(WeightsInvalid, match=f"part {part} of the .*{WEIGHTS[part]} {expected}") as caught:
            weights.load(checkpoint)
        assert "havir weights fetch" in str(caught.value)


def test_a_tensor_too_many_is_named(checkpoint):
    file = checkpoint / WEIGHTS["vae"]
    save_file({**load_file(file), "decoder.extra": torch.zeros(1)}, file)
    with pytest.raises(WeightsInvalid, match=r"1 tensors too many, the first decoder\.extra"):
        weights.load(checkpoint)


@pytest.mark.parametrize("content", ["{", "[1]", '{"block_out_channels": "many"}', '{"down_block_types": ["Strange"]}'])
@pytest.mark.parametrize("part", ["image_unet", "vae"])
def test_a_damaged_configuration_is_named(checkpoint, part, content):
    (checkpoint / part / "config.json").write_text(content)
    with pytest.raises(WeightsInvalid, match=f"part {part} of the .*{part}/config.json"):
        weights.load(checkpoint)


def test_another_configuration_does_not_fit(checkpoint):
    config = checkpoint / "image_unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 32}))
    with pytest.raises(WeightsInvalid, match="do not fit the code"):
        weights.load(checkpoint)


def test_a_tokenizer_without_its_vocabulary_is_refused(checkpoint):
    file = checkpoint / "tokenizer" / "tokenizer.json"
    whole = file.read_text()
    file.unlink()
    with pytest.raises(WeightsMissing, match="lacks its part tokenizer"):
        weights.load(checkpoint)
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(WeightsInvalid, match="part tokenizer"):
        weights.load(checkpoint)
    words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>", "c</w>"]
    CLIPTokenizer(vocab={name: i for i, name in enumerate(words)}, merges=[], model_max_length=6).save_pretrained(checkpoint / "tokenizer")
    with pytest.raises(WeightsInvalid, match="has 7 entries, its text_encoder 6"):
        weights.load(checkpoint)


def test_every_error_of_the_loader_is_ours(checkpoint):
    """Whatever single file is emptied, the loader says so in words."""
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.parent != checkpoint):
        whole = file.read_bytes()
        file.write_bytes(b"")
        if file.relative_to(checkpoint).parts[0] in {"image_unet", "text_unet", "vae", "scheduler"}:
            with pytest.raises(HavirError, match=file.parent.name):
                weights.load(checkpoint)
        file.write_bytes(whole)
