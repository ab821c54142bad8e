"""Grad-CAM: where in an image a classifier looks (Selvaraju et al. 2017, arXiv 1610.02391)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlx.models.backbones import Backbone
from tlx.models.classifier import Classifier


def target_block(backbone: Backbone, image_size: int) -> int:
    """How many blocks to run before the activations that Grad-CAM looks at.

    Those are the last map of more than one place. Of tokens they are what the last block with
    attention takes in: behind it nothing but the class token counts.
    """
    shapes = _block_shapes(backbone, image_size)
    if len(shapes[-1]) == 3:
        mixing = [any(p.dim() > 1 for p in b.parameters()) for b in backbone.blocks]
        return len(mixing) - 1 - mixing[::-1].index(True)
    places = [_places(shape) for shape in shapes]
    return max((i for i, n in enumerate(places, 1) if n > 1), default=len(shapes))


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """What speaks for `classes` (B,): maps (B, H, W) from 0 to 1, which is their largest value.

    Images (B, 3, H, W) are normalised. Works on a classifier in evaluation mode whose parameters
    are all frozen: the gradient is that of the activations alone.
    """
    cut = target_block(classifier.backbone, images.shape[-1])
    with torch.no_grad():
        activations = classifier.backbone(images, stop=cut)
    with torch.enable_grad():
        activations = activations.detach().requires_grad_()
        # a copy, because a later block may work in place
        logits = classifier(activations.clone(), start=cut)
        (gradients,) = torch.autograd.grad(_scores(logits, classes).sum(), activations)
    activations, gradients = _as_map(activations.detach()), _as_map(gradients)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * activations).sum(dim=1, keepdim=True).relu()
    maps = F.interpolate(maps.float(), size=images.shape[2:], mode="bilinear")[:, 0]
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return maps / largest.clamp(min=torch.finfo(maps.dtype).tiny)


def _scores(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of each image's class; of two classes as one logit, the first is its negative."""
    if logits.shape[1] == 1:
        return logits[:, 0] * (2 * classes - 1)
    return logits.gather(1, classes[:, None])[:, 0]


def _block_shapes(backbone: Backbone, image_size: int) -> list[tuple[int, ...]]:
    """What each block puts out for one image, found without computing it."""
    shapes: list[tuple[int, ...]] = []
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        for block in backbone.blocks:
            x = _on_meta(block, x)
            shapes.append(tuple(x.shape))
    return shapes


def _on_meta(block: nn.Module, x: Tensor) -> Tensor:
    tensors = [*block.named_parameters(), *block.named_buffers()]
    state = {name: tensor.detach().to("meta") for name, tensor in tensors}
    output: Tensor = torch.func.functional_call(block, state, (x,))
    return output


def _places(shape: tuple[int, ...]) -> int:
    if len(shape) == 2:
        return 1  # vectors, behind the maps
    return math.prod(shape[2:] if _is_map(shape) else shape[1:3])


def _is_map(shape: tuple[int, ...]) -> bool:
    """Whether (B, C, H, W); otherwise it is (B, H, W, C), as between Swin's blocks."""
    return shape[2] == shape[3]


def _as_map(x: Tensor) -> Tensor:
    """(B, C, H, W) from a map in either order, or from tokens (B, 1 + H·W, C)."""
    if x.dim() == 4:
        return x if _is_map(tuple(x.shape)) else x.permute(0, 3, 1, 2)
    side = math.isqrt(x.shape[1] - 1)
    return x[:, 1:].transpose(1, 2).reshape(len(x), -1, side, side)
