"""What a network's outputs mean: their number, their loss and their probabilities.

The width of the logits says which it is: one logit for two classes (binary cross-entropy), else
one logit per class (cross-entropy). No other softmax or sigmoid exists in the program.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tlx.errors import UserError


def num_outputs(loss: str, num_classes: int) -> int:
    """The width of the logits; raises when `loss=binary` meets other than two classes."""
    if loss != "binary":
        return num_classes
    if num_classes != 2:
        raise UserError(f"loss=binary is for 2 classes, not {num_classes}; use loss=cross_entropy.")
    return 1


def sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of every sample, (B,) float32, from logits (B, W).

    `targets` are class indices (B,), or probabilities (B, classes) float32.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        second = targets[:, 1] if targets.is_floating_point() else targets.float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], second, reduction="none")
    return F.cross_entropy(logits, targets, reduction="none")


def probabilities(logits: Tensor) -> Tensor:
    """(B, classes) float64, rows adding up to 1, in the order of the class names."""
    logits = logits.double()
    if logits.shape[1] == 1:
        positive = torch.sigmoid(logits[:, 0])
        return torch.stack([1 - positive, positive], dim=1)
    return torch.softmax(logits, dim=1)


def target_classes(targets: Tensor) -> Tensor:
    """(B,) int64 of targets as `sample_losses` takes them: of probabilities the likeliest class."""
    return targets.argmax(dim=1) if targets.is_floating_point() else targets


def predicted(logits: Tensor) -> Tensor:
    """The likeliest class of every sample, (B,) int64."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
