"""The loss of the default recipe equals MONAI's Dice plus torch's cross-entropy, with their gradients."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from HiEndMAECore.training.losses import WeightedDiceCELoss
from HiEndMAECore.training.training_cases import TrainingCase

CLASSES = 5


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("done", [0.1, 0.9])
@pytest.mark.parametrize("absent", [False, True])
def test_the_loss_and_its_gradient_are_those_of_monai_and_torch(scale: float, done: float, absent: bool) -> None:
    torch.manual_seed(0)
    classes = torch.randint(0, CLASSES - absent, (2, 1, 6, 7, 8)).short()
    loss = WeightedDiceCELoss([TrainingCase("case", torch.rand(1, 6, 7, 8), classes[0, 0])], classes=CLASSES)
    logits = (scale * torch.randn(2, CLASSES, 6, 7, 8)).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    value = loss(logits, classes, done=done)
    (3 * value).backward()

    weights = loss.class_fractions.double() ** (-0.5 * max(0.0, 1 - 2 * done))
    weights = weights / (weights * loss.class_fractions).sum()
    dice = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    wanted = dice(exact, classes) + F.cross_entropy(exact, classes[:, 0].long(), weights)
    (3 * wanted).backward()
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    found, expected = (tensor.grad for tensor in (logits, exact))
    assert found is not None
    assert expected is not None
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
