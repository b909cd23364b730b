"""The loss of the default recipe equals MONAI's Dice plus torch's cross-entropy, with their gradients."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from HiEndMAECore.training.losses import WeightedDiceCELoss, merge_unknown
from HiEndMAECore.training.training_cases import IGNORED, TrainingCase

CLASSES = 5
SHAPE = (2, 1, 6, 7, 8)


def random_classes(*, ignored: float) -> torch.Tensor:
    """Return random classes (2, 1, 6, 7, 8), of which a share is ignored."""
    classes = torch.randint(0, CLASSES, SHAPE).short()
    return torch.where(torch.rand(SHAPE) < ignored, IGNORED, classes).short()


def build_loss(classes: torch.Tensor) -> WeightedDiceCELoss:
    return WeightedDiceCELoss(
        [TrainingCase(str(index), torch.rand(1, 6, 7, 8), crop[0]) for index, crop in enumerate(classes)],
        classes=CLASSES,
    )


def masked_monai_loss(
    loss: WeightedDiceCELoss, logits: torch.Tensor, classes: torch.Tensor, done: float
) -> torch.Tensor:
    """Return MONAI's Dice of masked probabilities and masked labels, plus torch's cross-entropy without ignored voxels."""
    judged = classes != IGNORED
    labels = F.one_hot(classes[:, 0].clamp(min=0).long(), CLASSES).movedim(-1, 1) * judged
    dice = DiceLoss(include_background=False, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    weights = loss.class_fractions.double() ** (-0.5 * max(0.0, 1 - 2 * done))
    weights = weights / (weights * loss.class_fractions).sum()
    cross_entropy = F.cross_entropy(logits, classes[:, 0].long(), weights, ignore_index=IGNORED)
    return dice(logits.softmax(1) * judged, labels) + cross_entropy


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


@pytest.mark.parametrize("done", [0.1, 0.9])
@pytest.mark.parametrize("ignored", [0.2, 0.75])
def test_the_loss_with_ignored_voxels_is_that_of_monai_and_torch_without_them(ignored: float, done: float) -> None:
    torch.manual_seed(0)
    classes = random_classes(ignored=ignored)
    loss, logits = build_loss(classes), torch.randn(2, CLASSES, 6, 7, 8).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    value, wanted = loss(logits, classes, done=done), masked_monai_loss(loss, exact, classes, done)
    value.backward()
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert logits.grad is not None
    assert exact.grad is not None
    assert float((logits.grad - exact.grad).abs().max() / exact.grad.abs().max()) < 1e-5
    assert not logits.grad.movedim(1, 0)[:, classes[:, 0] == IGNORED].any()


def test_the_gradient_with_ignored_and_unknown_voxels_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    classes = random_classes(ignored=0.4)[..., :3, :3, :3]
    classes[1][classes[1] == 2] = 0
    loss = build_loss(classes)

    def value(logits: torch.Tensor) -> torch.Tensor:
        return loss(merge_unknown(logits, [(), (2, 4)]), torch.where(classes == 4, 0, classes), done=0.2)

    logits = torch.randn(2, CLASSES, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (logits,))


def test_a_crop_of_ignored_voxels_alone_has_no_loss() -> None:
    classes = random_classes(ignored=1.0)
    logits = torch.randn(2, CLASSES, 6, 7, 8, requires_grad=True)
    value = build_loss(classes)(logits, classes, done=0.0)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_class_fractions_leave_out_ignored_voxels_and_cases_that_do_not_label_a_class() -> None:
    classes = torch.tensor([0] * 6 + [1] * 2 + [2] * 2 + [IGNORED] * 10).view(1, 1, -1)
    both = TrainingCase("both", classes[None].float(), classes)
    one = TrainingCase("one", classes[None].float(), torch.where(classes == 2, 0, classes), unknown=(2,))
    assert WeightedDiceCELoss([both, one], classes=3).class_fractions.tolist() == pytest.approx([0.7, 0.2, 0.2])
    assert WeightedDiceCELoss([both], classes=3).class_fractions.tolist() == pytest.approx([0.6, 0.2, 0.2])


def test_the_loss_of_a_crop_without_label_of_a_structure_is_that_of_a_network_without_it() -> None:
    """The background has the probability of both, and the structure has no part in the Dice."""
    torch.manual_seed(0)
    classes = torch.randint(0, 4, SHAPE).short()  # class 4 is unknown
    loss, logits = build_loss(classes), torch.randn(2, CLASSES, 6, 7, 8, dtype=torch.float64)
    found = loss(merge_unknown(logits, [(4,), (4,)]), classes, done=0.9)
    probabilities = logits.softmax(1)
    probabilities = torch.cat([probabilities[:, :1] + probabilities[:, 4:], probabilities[:, 1:4]], 1)
    labels = F.one_hot(classes[:, 0].long(), 4).movedim(-1, 1)
    dice = DiceLoss(include_background=False, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(probabilities, labels)
    wanted = dice * 3 / 4 + F.nll_loss(probabilities.log(), classes[:, 0].long())  # the unknown structure adds no loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_structure_that_one_crop_does_not_label_has_the_dice_of_the_other_crop() -> None:
    torch.manual_seed(0)
    classes = torch.randint(0, CLASSES, SHAPE).short()
    classes[0][classes[0] == 4] = 0
    loss, logits = build_loss(classes), torch.randn(2, CLASSES, 6, 7, 8, dtype=torch.float64)
    merged = merge_unknown(logits, [(4,), ()])
    assert torch.equal(merged[1], logits[1])
    assert torch.equal(merged[0, 1:4], logits[0, 1:4])
    probabilities = logits.softmax(1)
    assert merged.softmax(1)[0, 0] == pytest.approx(probabilities[0, 0] + probabilities[0, 4])
    assert not merged.softmax(1)[0, 4].any()
    found = loss(merged, classes, done=1.0)
    dice = DiceLoss(include_background=False, batch=True, reduction="none", smooth_nr=1e-5, smooth_dr=1e-5)
    labels = F.one_hot(classes[:, 0].long(), CLASSES).movedim(-1, 1)
    terms = [dice(probabilities, labels)[:3], dice(probabilities[1:], labels[1:])[3:]]
    own = merged.log_softmax(1).gather(1, classes.long())
    assert found.item() == pytest.approx((torch.cat(terms).mean() - own.mean()).item(), rel=1e-6)


def test_merge_unknown_returns_the_same_tensor_where_nothing_is_unknown() -> None:
    logits = torch.randn(2, CLASSES, 2, 2, 2)
    assert merge_unknown(logits, [(), ()]) is logits
    assert merge_unknown(logits, ()) is logits
