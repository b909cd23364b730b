"""Settings of the two training loops."""

from __future__ import annotations

from dataclasses import dataclass

# `encoder_rate` for a pretrained encoder. Testing/Benchmarks/results.md has the comparison with the rate of a new one.
PRETRAINED_RATE = 1e-4

_STORED_NAMES = {  # of the fields in `FinetuningPlan.stored_text`, in their order
    "crop": "crop",
    "steps": "steps",
    "seconds": "seconds",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "encoder_rate": "encoder_rate",
    "layer_decay": "layer_decay",
    "weight_decay": "weight_decay",
    "warm_up": "warm_up",
    "ema": "ema",
    "mirrored": "mirror_probability",
    "clip": "clip",
    "seed": "seed",
}


@dataclass(frozen=True, kw_only=True)
class FinetuningPlan:
    """Settings of a fine-tuning run. Either `steps` or `seconds` is given.

    Attributes:
        crop: Edges (H, W, D) of a crop in voxels.
        steps: Optimizer steps.
        seconds: Time for the run; it is converted to steps once, by timing a few steps.
        batch_size: Crops of a step.
        learning_rate: Base rate of the convolutions.
        encoder_rate: Base rate of the encoder. The default suits an encoder that is trained from scratch, and
            `PRETRAINED_RATE` a pretrained one; 0 freezes the encoder.
        layer_decay: Factor between the rates of successive encoder blocks, smaller towards the input; 1 is one rate for
            all.
        weight_decay: Weight decay of AdamW.
        warm_up: Fraction of the run in which the rate rises.
        ema: Decay of the averaged weights, which become the model; 0 takes the last weights.
        mirror_probability: Probability that a crop is mirrored, where the labels allow it.
        clip: Largest norm of the gradients; None is no clipping.
        seed: Seed of the run.
        preset: Name of the preset, which the checkpoint stores: a resumed run has the same one.
    """

    crop: tuple[int, int, int]
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 1
    learning_rate: float = 4e-3
    encoder_rate: float = 1e-3
    layer_decay: float = 1.0
    weight_decay: float = 1e-5
    warm_up: float = 0.05
    ema: float = 0.99
    mirror_probability: float = 0.5
    clip: float | None = 1.0
    seed: int = 0
    preset: str = ""

    def stored_text(self) -> str:
        """Return the text whose digest binds a training checkpoint to its plan.

        The text is frozen: it has the names that were first stored, so that runs of earlier versions can be resumed.
        """
        values = ", ".join(f"{stored}={getattr(self, name)!r}" for stored, name in _STORED_NAMES.items())
        return f"FinetuningPlan({values})"


@dataclass(frozen=True, kw_only=True)
class PretrainingPlan:
    """Settings of a pretraining run. Defaults are the paper's, or those of the released code where the two differ.

    Attributes:
        steps: Optimizer steps.
        batch_size: Crops of a step, over all processes and accumulation steps.
        accumulate: Parts in which a step is computed.
        learning_rate: Base rate.
        betas: Coefficients of AdamW.
        weight_decay: Weight decay of AdamW.
        decay_all: True applies weight decay to every tensor, as the released code does; False only to matrices.
        warm_up: Steps of the warm-up; None is a hundredth of the run (4,000 of the paper's 400,000).
        clip: Largest norm of the gradients; None is no clipping, as in the released code.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        compile: True compiles the network with `torch.compile`.
        recompute: True recomputes activations in the backward pass to save memory (gradient checkpointing).
        workers: Threads that read crops ahead.
        checkpoint_minutes: Time between two training checkpoints.
        validation_minutes: Time between two evaluations on the fixed validation crops.
        max_checkpoints: Number of checkpoints that are retained.
        tensorboard: True also writes TensorBoard's files.
        seed: Seed of the run.
        initial_sha256: SHA-256 of the initial weights; a resumed run must have the same.
    """

    steps: int
    batch_size: int = 192
    accumulate: int = 1
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    decay_all: bool = True
    warm_up: int | None = None
    clip: float | None = None
    precision: str = "auto"
    compile: bool = False
    recompute: bool = False
    workers: int = 2
    checkpoint_minutes: float = 10.0
    validation_minutes: float = 2.0
    max_checkpoints: int = 2
    tensorboard: bool = False
    seed: int = 0
    initial_sha256: str = ""
