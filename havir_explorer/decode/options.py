"""What shapes a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.split import Choice

Precision = Literal["no", "bf16", "fp16"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Options:
    """What shapes a training run.

    Parameters
    ----------
    structural, semantic : sizes
    batch : int
    epochs : float
        How often each training picture is shown, on average, where the number of steps is not given; 0 for the teaching world's steps.
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
    sessions : int
        Train on the first so many sessions alone; 0 for all. What a new subject needs is counted in sessions (MindEye2).
    caption_target, image_source : str
        How the text targets were made, and of which picture the image targets are; recorded.
    choice : Choice
        Which voxels each branch reads.
    mixco : float
        Share of the steps, from the first on, that mix brain responses for the contrast of the Semantic Extractor
        (:mod:`~havir_explorer.decode.mixco`); 0 never, MindEye 1/3.
    """

    structural: StructuralSizes = field(default_factory=StructuralSizes)
    semantic: SemanticSizes = field(default_factory=SemanticSizes)
    batch: PositiveInt = 64
    epochs: NonNegativeFloat = 0.0
    structural_rate: PositiveFloat = 2e-3
    semantic_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.05
    edges: NonNegativeFloat = 0.1
    pixel_edges: NonNegativeFloat = 0.0
    pixel_pictures: PositiveInt = 4
    temperature: PositiveFloat = 0.005
    mse: NonNegativeFloat = 1e6
    contrast: NonNegativeFloat = 1.0
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.08
    repair_latents: Share = 0.0
    repair_tokens: Share = 1.0
    check_every: PositiveInt = 100
    save_every: PositiveInt = 250
    patience: NonNegativeInt = 0
    precision: Precision = "no"
    sessions: NonNegativeInt = 0
    caption_target: str = "mean"
    image_source: str = "stimulus"
    choice: Choice = field(default_factory=Choice)
    mixco: Share = 0.0

    def listed(self) -> tuple[tuple[str, str], ...]:
        """Return names and values as words, without the sizes and the choice of voxels, which a manifest holds anyway."""
        return tuple((f.name, str(getattr(self, f.name))) for f in fields(self) if f.name not in ("structural", "semantic", "choice"))
