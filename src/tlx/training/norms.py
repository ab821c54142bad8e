"""How long the gradient and the weights of each layer group are."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def group_norms(groups: Mapping[str, nn.Module]) -> dict[str, float]:
    """The 2-norms `gradient_norm/GROUP` and `weight_norm/GROUP` of the groups that learn.

    Of the parameters that have a gradient, all of a group as one vector. One transfer from the
    device for all of them.
    """
    norms: dict[str, Tensor] = {}
    for name, module in groups.items():
        parameters = [p for p in module.parameters() if p.grad is not None]
        if parameters:
            norms[f"gradient_norm/{name}"] = _norm(p.grad for p in parameters)
            norms[f"weight_norm/{name}"] = _norm(p.detach() for p in parameters)
    values = torch.stack(list(norms.values())).tolist() if norms else []
    return dict(zip(norms, values, strict=True))


def _norm(tensors: Iterable[Tensor | None]) -> Tensor:
    return nn.utils.get_total_norm([t for t in tensors if t is not None]).float()
