"""What shapes a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.split import Choice

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Options:
    """What shapes a training run.

    Parameters
    ----------
    structural, semantic : sizes
    batch : int
    structural_rate, semantic_rate : float
        Peak learning rates of one cosine cycle each (a tenth of the steps warm-up).
    weight_decay : float
        Of matrices and kernels; biases and norms are spared.
    edges : float
        Weight of the Sobel term in latents.
    pixel_edges : float
        Weight of the Sobel term in decoded pictures (:mod:`~havir_explorer.decode.edges`); 0 leaves it out.
    pixel_pictures : int
        How many pictures of a batch are decoded for it.
    temperature, mse, contrast : float
        Of the token loss. MindBridge's ``mse`` is 1e4; with a few thousand pictures SoftCLIP then drowns it and tokens come out
        distinguishable but far from their targets (centred cosine of image tokens 0.49 on the teaching world's test images, 0.81 with 1e6).
    held_out : float
        Share of the training images kept back to choose the best step and to fit the repair.
    repair_latents, repair_tokens : float
        Share of the lost spread that is restored, 0 to 1.
    check_every, save_every : int
        Steps between looks at the held-out images and between checkpoints.
    patience : int
        A branch stops once this many looks in a row found no lower loss; 0 never stops it early.
    precision : {'no', 'bf16', 'fp16'}
        Number format of products and convolutions in training; weights and losses stay float32.
    caption_target : str
        How the text targets were made; recorded.
    choice : Choice
        Which voxels each branch reads.
    mixco : float
        Share of the steps, from the first on, that mix brain responses for the contrast of the Semantic Extractor
        (:mod:`~havir_explorer.decode.mixco`); 0 never, MindEye 1/3.
    """

    structural: StructuralSizes = field(default_factory=StructuralSizes)
    semantic: SemanticSizes = field(default_factory=SemanticSizes)
    batch: int = 64
    structural_rate: float = 2e-3
    semantic_rate: float = 3e-3
    weight_decay: float = 0.05
    edges: float = 0.1
    pixel_edges: float = 0.0
    pixel_pictures: int = 4
    temperature: float = 0.005
    mse: float = 1e6
    contrast: float = 1.0
    held_out: float = 0.08
    repair_latents: float = 0.0
    repair_tokens: float = 1.0
    check_every: int = 100
    save_every: int = 250
    patience: int = 0
    precision: Precision = "no"
    caption_target: str = "mean"
    choice: Choice = field(default_factory=Choice)
    mixco: float = 0.0

    def listed(self) -> tuple[tuple[str, str], ...]:
        """Return names and values as words, without the sizes and the choice of voxels, which a manifest holds anyway."""
        return tuple((f.name, str(getattr(self, f.name))) for f in fields(self) if f.name not in ("structural", "semantic", "choice"))
