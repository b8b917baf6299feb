"""Train the teaching world's Versatile Diffusion: ``python -m havir_explorer.data.demo.train``.

Stages in order: ``vae``, ``clip``, ``flows``, ``export``, each a command of its own with ``--work`` for its checkpoints; the first three take
``--steps`` and resume. The pool of scenes is drawn, and encoded, when a stage first needs it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from havir_explorer.data.demo import record, scenes
from havir_explorer.diffuse import train as loops
from havir_explorer.diffuse import weights
from havir_explorer.diffuse.model import VersatileDiffusion, fit_preview
from havir_explorer.diffuse.versatile import VersatileUNet

FIRST_SCENE = 100_000  # beyond NSD's 73,000, so no subject ever sees a training picture of the generator
POOL = 30_000
SIDE, WIDTH, TEXT_TOKENS = 64, 64, 24

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": SIDE,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
UNET = {
    "sample_size": SIDE // 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
TOWER = {"hidden_size": 96, "intermediate_size": 384, "projection_dim": WIDTH, "num_attention_heads": 4}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _pool(work: Path) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    file = work / "pool.npy"
    numbers = range(FIRST_SCENE, FIRST_SCENE + POOL)
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        np.save(file, np.stack([scenes.draw(scenes.scene(n), SIDE) for n in numbers]))
    return np.load(file, mmap_mode="r"), [scenes.captions(scenes.scene(n)) for n in numbers]


def _tokenizer(captions: list[tuple[str, ...]]) -> CLIPTokenizer:
    """Byte-pair encoding with CLIP's own pre-tokenizer, learnt from the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, min_frequency=50, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator((c for five in captions[:4000] for c in five), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    letters = sorted(alphabet)
    merges = [tuple(pair) for pair in learnt["merges"]]
    entries = dict.fromkeys([*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges, model_max_length=TEXT_TOKENS)


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    return loops.to_unit(pictures) / 0.5  # CLIPImageProcessor with mean 0.5 and standard deviation 0.25


def _tokens(tokenizer: CLIPTokenizer, captions: list[tuple[str, ...]]) -> np.ndarray:
    flat = [caption for five in captions for caption in five]
    ids = tokenizer(flat, padding="max_length", max_length=TEXT_TOKENS, truncation=False)["input_ids"]
    longest = max(len(i) for i in ids)
    if longest > TEXT_TOKENS:
        msg = f"a caption takes {longest} tokens; the text tower has {TEXT_TOKENS}"
        raise ValueError(msg)
    return np.asarray(ids, dtype=np.int16).reshape(len(captions), -1, TEXT_TOKENS)


def _towers(tokenizer: CLIPTokenizer) -> tuple[CLIPVisionModelWithProjection, CLIPTextModelWithProjection]:
    torch.manual_seed(0)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER, num_hidden_layers=4, image_size=SIDE, patch_size=8))
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = CLIPTextModelWithProjection(CLIPTextConfig(**TOWER, num_hidden_layers=3, vocab_size=len(tokenizer), max_position_embeddings=TEXT_TOKENS, **special))
    return vision, text


class _Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = torch.nn.Parameter(torch.tensor(2.66))


def _averages(folder: Path, modules: dict[str, torch.nn.Module]) -> int:
    state = torch.load(folder / "state.pt", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["averages"][name])
        module.eval().requires_grad_(requires_grad=False)
    return int(state["step"])


def _model(work: Path) -> VersatileDiffusion:
    """Return what has been trained so far in ``work``; without an autoencoder there, the shipped model with the flows of ``work``, if any."""
    if not (work / "vae" / "state.pt").exists():
        shipped = weights.load()
        if (work / "flows" / "state.pt").exists():
            _averages(work / "flows", {"unet": shipped.unet})
        return shipped
    vae = AutoencoderKL.from_config(VAE)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vision, text = _towers(tokenizer)
    unet = VersatileUNet(UNET)
    _averages(work / "vae", {"vae": vae})
    _averages(work / "clip", {"vision": vision, "text": text})
    if (work / "flows" / "state.pt").exists():
        _averages(work / "flows", {"unet": unet})
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    blank = torch.zeros(1)
    model = VersatileDiffusion(unet, vae, vision, text, tokenizer, processor, SCHEDULER, blank, blank, torch.zeros(5, 3))
    pictures = np.load(work / "pool.npy", mmap_mode="r")[:256]
    latents = loops.encode_latents(vae, pictures)
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))
    scaled = latents * vae.config.scaling_factor
    return replace(weights.completed(model), preview_map=fit_preview(scaled, pictures))


def _encode(work: Path, captions: list[tuple[str, ...]]) -> loops.FlowData:
    """Encode the pool once; float16 on disk, memory-mapped afterwards."""
    model, pictures = _model(work), np.load(work / "pool.npy", mmap_mode="r")
    if not (work / "texts.npy").exists():
        flat = [caption for five in captions for caption in five]
        distinct = sorted(set(flat))
        row = {caption: i for i, caption in enumerate(distinct)}
        np.save(work / "latents.npy", model.encode_latents(pictures, 64).astype(np.float16))
        np.save(work / "images.npy", model.embed_images(pictures, 128).astype(np.float16))
        np.save(work / "rows.npy", np.array([row[c] for c in flat], dtype=np.int32).reshape(len(captions), -1))
        np.save(work / "texts.npy", model.embed_texts(distinct).astype(np.float16))
    latents, images, rows, texts = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("latents", "images", "rows", "texts"))
    return loops.FlowData(latents, images, texts, rows.long(), model.empty_image, model.empty_text)


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "clip", "flows", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (a third faster on a CPU)")
    parser.add_argument("--shipped", action="store_true", help="flows: begin with the shipped weights (and the shipped autoencoder and CLIP)")
    parser.add_argument("--out", type=Path, default=None, help="export: where to write the checkpoint")
    asked = parser.parse_args()
    if asked.stage != "export" and asked.steps < 1:
        parser.error(f"the stage {asked.stage} needs --steps, the optimiser steps in all; got {asked.steps}")
    torch.set_num_threads(asked.threads)
    schedule = loops.Schedule(asked.steps, asked.batch, asked.rate)
    work: Path = asked.work
    pictures, captions = _pool(work)
    if asked.stage == "vae":
        torch.manual_seed(0)
        vae = AutoencoderKL.from_config(VAE)
        loops.fit({"vae": vae}, loops.autoencoder_loss(vae, pictures, asked.batch), schedule, work / "vae", averaged=("vae",))
    if asked.stage == "clip":
        tokenizer = _tokenizer(captions)
        tokenizer.save_pretrained(work / "tokenizer")
        vision, text = _towers(tokenizer)
        scale = _Scale()
        loss = loops.contrastive_loss(vision, text, _pixels, pictures, _tokens(tokenizer, captions), asked.batch, scale.log)
        loops.fit({"vision": vision, "text": text, "scale": scale}, loss, schedule, work / "clip", averaged=("vision", "text"))
    if asked.stage == "flows":
        data = _encode(work, captions)
        torch.manual_seed(0)
        unet = weights.load().unet.requires_grad_().train() if asked.shipped else VersatileUNet(UNET)
        forward = torch.compile(unet) if asked.compile else unet
        loss = loops.flow_loss(DDIMScheduler(**SCHEDULER), data, asked.batch, forward)
        loops.fit({"unet": unet}, loss, schedule, work / "flows", averaged=("unet",))
    if asked.stage == "export":
        model, folder = _model(work), asked.out or weights.demo_folder()
        weights.save(model, folder)
        record.write(weights.load(folder), work, folder)


if __name__ == "__main__":
    main()
