"""The loss over several resolutions: level i counts with weight 2^-i, labels are brought to its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from HiEndMAECore.networks import build_network, segmentation_architecture
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning
from HiEndMAECore.training.deep_supervision import deep_supervision_loss, downsample_classes
from HiEndMAECore.training.losses import WeightedDiceCELoss
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import IGNORED, TrainingCase


class MeanLogit(nn.Module):
    """A stand-in for a loss that shows which level it was given."""

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        assert logits.shape[2:] == classes.shape[2:]
        assert logits.dtype == torch.float32
        return logits.mean() + done


def test_levels_are_weighed_by_powers_of_one_half() -> None:
    levels = [torch.full((1, 3, *[16 // 2**level] * 3), value) for level, value in enumerate((1.0, 10.0, 100.0))]
    classes = torch.zeros(1, 1, 16, 16, 16, dtype=torch.int16)
    assert float(deep_supervision_loss(MeanLogit(), levels, classes, done=0.0)) == pytest.approx(1 + 5 + 25)
    assert float(deep_supervision_loss(MeanLogit(), levels[:1], classes, done=0.5)) == pytest.approx(1.5)


def test_single_tensor_is_passed_on_unchanged() -> None:
    logits = torch.rand(1, 2, 8, 8, 8).bfloat16()
    classes = torch.zeros(1, 1, 8, 8, 8)
    assert torch.equal(deep_supervision_loss(MeanLogit(), logits, classes, done=0.0), logits.float().mean())


def test_classes_are_downsampled_to_values_that_occur() -> None:
    classes = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16)
    classes[:, :, 4:] = 300
    small = downsample_classes(classes, (4, 4, 2))
    assert small.shape == (1, 1, 4, 4, 2)
    assert small.dtype == torch.int16
    assert (small[:, :, :2] == 0).all()
    assert (small[:, :, 2:] == 300).all()
    assert downsample_classes(classes, (8, 8, 8)) is classes


def test_ignored_and_unknown_voxels_have_no_gradient_at_any_level() -> None:
    torch.manual_seed(0)
    classes = torch.randint(0, 2, (1, 1, 16, 16, 16)).short()
    classes[:, :, 8:] = IGNORED
    levels = [torch.randn(1, 3, *[16 // 2**level] * 3, requires_grad=True) for level in range(3)]
    criterion = WeightedDiceCELoss([TrainingCase("half", classes[0].float(), classes[0, 0])], classes=3)
    deep_supervision_loss(criterion, levels, classes, done=0.0, unknown=((2,),)).backward()
    for level in levels:
        assert level.grad is not None
        half = level.shape[2] // 2
        assert not level.grad[:, :, half:].any()
        assert level.grad[:, :, :half].any()
        is_background = downsample_classes(classes, level.shape[2:])[0, 0, :half] == 0
        gradient, probabilities = level.grad[0, :, :half], level.detach()[0, :, :half].softmax(0)
        ratio = (gradient[2] / gradient[0])[is_background]  # both are the background
        assert ratio.allclose((probabilities[2] / probabilities[0])[is_background], rtol=1e-3)


def test_deep_supervision_trains_the_coarse_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(segmentation_architecture("dynunet_small", classes=2, image_size=(16, 16, 16)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classes = torch.zeros(24, 24, 24, dtype=torch.int16)
    classes[8:16, 8:16, 8:16] = 1
    case = TrainingCase("cube", classes[None].float(), classes)
    plan = FinetuningPlan(crop=(16, 16, 16), steps=12, learning_rate=1e-3, encoder_rate=1e-3)
    result = finetuning.finetune(
        [case], network, plan=plan, device=torch.device("cpu"), folder=tmp_path, report=Reporter(quiet=True)
    )
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"coarse_heads.0.conv.conv.weight", "coarse_heads.1.conv.conv.weight"} <= moved
    losses = [loss for _, loss in result.losses]
    assert losses[-1] < losses[0]
    assert isinstance(result.network(case.image[None, :, :16, :16, :16]), Tensor)
