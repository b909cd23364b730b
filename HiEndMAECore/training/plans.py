"""The fine-tuning loop: one to a few labelled scans, held on the device, and a clock (paper section 4.1, ours in the rest).

No workers and no disk: every crop is cut out of the whole scan with its rotation, scaling and bend in one interpolation.
Step `i` draws from generators keyed by (seed, i), so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

PRETRAINED_RATE = 1e-4  # `encoder_rate` of an encoder that has learned before; Testing/Benchmarks/results.md has why


@dataclass(frozen=True, kw_only=True)
class FinetuningPlan:
    """Settings of a run.

    crop: voxels (H, W, D). learning_rate is of the convolutions; the encoder's is `encoder_rate`, as suits one that starts
    from nothing (`PRETRAINED_RATE` suits one that does not); 0 freezes it. Either `steps` is given, or `seconds`, from
    which a probe makes steps once. ema: decay of the averaged weights that are kept.
    layer_decay: each block of the encoder learns at this share of the rate of the one after it; 1 is one rate for all.
    mirrored: share of crops that are mirrored where the labels allow it. clip: the gradients' largest norm.
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
    mirrored: float = 0.5
    clip: float | None = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PretrainingPlan:
    """Settings of a run; defaults are the paper's, with the released code's reading where they differ.

    batch_size counts crops over all processes and accumulation steps.
    warm_up: steps until the full rate; None: a hundredth of the run (4 K of the paper's 400 K).
    decay_all: weight decay on every tensor, as the release does; False: on matrices alone.
    clip: largest norm of the gradients, None: none, as in the release.
    workers: threads that read crops ahead. keep: snapshots that stay.
    look_minutes: time between two looks (`on_look`). start: SHA-256 of the weights it starts from, a resumed run must have the
    same.
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
    snapshot_minutes: float = 10.0
    look_minutes: float = 2.0
    keep: int = 2
    tensorboard: bool = False
    seed: int = 0
    start: str = ""
