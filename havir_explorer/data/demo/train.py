"""Train the teaching world's Versatile Diffusion: ``python -m havir_explorer.data.demo.train``.

Without arguments every stage runs in its order: ``vae``, ``clip``, ``flows``, ``export``. Each can also be run alone; the first three resume from
the checkpoints in ``--work``. The pool of scenes is drawn, and encoded, when a stage first needs it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
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
from havir_explorer.paths import cache_folder

STAGES = {"vae": loops.Schedule(2_500, 16, 1e-3), "clip": loops.Schedule(3_000, 64, 1e-3), "flows": loops.Schedule(16_000, 32, 1e-3)}
"""What is trained, in this order, and for how long unless the command line says otherwise."""

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
    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
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


def train_vae(work: Path, schedule: loops.Schedule, asked: argparse.Namespace) -> None:
    """Fit the autoencoder to the pool."""
    pictures, _ = _pool(work)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(VAE).to(asked.device)
    loops.fit({"vae": vae}, loops.autoencoder_loss(vae, pictures, schedule.batch), schedule, work / "vae", averaged=("vae",))


def train_clip(work: Path, schedule: loops.Schedule, asked: argparse.Namespace) -> None:
    """Learn the tokenizer from the captions and fit both towers to the pool."""
    pictures, captions = _pool(work)
    tokenizer = _tokenizer(captions)
    tokenizer.save_pretrained(work / "tokenizer")
    vision, text = (tower.to(asked.device) for tower in _towers(tokenizer))
    scale = _Scale().to(asked.device)
    loss = loops.contrastive_loss(vision, text, _pixels, pictures, _tokens(tokenizer, captions), schedule.batch, scale.log)
    loops.fit({"vision": vision, "text": text, "scale": scale}, loss, schedule, work / "clip", averaged=("vision", "text"))


def train_flows(work: Path, schedule: loops.Schedule, asked: argparse.Namespace) -> None:
    """Fit the denoiser's two flows to the encoded pool; the autoencoder and the towers stay as they are."""
    data = _encode(work, _pool(work)[1])
    torch.manual_seed(0)
    unet = (weights.load().unet.requires_grad_().train() if asked.shipped else VersatileUNet(UNET)).to(asked.device)
    forward = torch.compile(unet) if asked.compile else unet
    loss = loops.flow_loss(DDIMScheduler(**SCHEDULER), data, schedule.batch, forward, asked.device)
    loops.fit({"unet": unet}, loss, schedule, work / "flows", averaged=("unet",))


def export(work: Path, folder: Path) -> None:
    """Write the checkpoint with its record and contact sheet."""
    weights.save(_model(work), folder)
    record.write(weights.load(folder), work, folder)


TRAINERS: dict[str, Callable[[Path, loops.Schedule, argparse.Namespace], None]] = {"vae": train_vae, "clip": train_clip, "flows": train_flows}


def _schedule(stage: str, asked: argparse.Namespace) -> loops.Schedule:
    given = {"steps": asked.steps, "batch": asked.batch, "learning_rate": asked.rate}
    return replace(STAGES[stage], **{name: value for name, value in given.items() if value is not None})


def main() -> None:
    """Run one stage, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", default="all", choices=("all", *STAGES, "export"))
    parser.add_argument("--work", type=Path, default=cache_folder() / "demo-training", help="folder of the checkpoints [%(default)s]")
    parser.add_argument("--steps", type=int, help="optimiser steps in all; each stage has its own default")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU [%(default)s]")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (a third faster on a CPU)")
    parser.add_argument("--shipped", action="store_true", help="flows: begin with the shipped weights (and the shipped autoencoder and CLIP)")
    parser.add_argument("--out", type=Path, default=weights.demo_folder(), help="export: where to write the checkpoint [%(default)s]")
    asked = parser.parse_args()
    if asked.steps is not None and asked.steps < 1:
        parser.error(f"--steps must be 1 or more; got {asked.steps}")
    torch.set_num_threads(asked.threads)
    for stage in STAGES if asked.stage == "all" else (asked.stage,):
        if stage in TRAINERS:
            TRAINERS[stage](asked.work, _schedule(stage, asked), asked)
    if asked.stage in ("all", "export"):
        export(asked.work, asked.out)


if __name__ == "__main__":
    main()
