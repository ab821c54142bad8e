"""A classifier is a backbone with a head, seen as layer groups: the blocks, then the head."""

from dataclasses import dataclass

from torch import Tensor, nn

from tlx import errors
from tlx.models.backbones import Backbone
from tlx.models.heads import Head

HEAD = "head"
ALL = "all"
TOP = "top"


class Classifier(nn.Module):
    """Images (B, 3, H, W), or what block `start` takes in, to logits (B, num_outputs).

    `start=len(backbone.blocks)` takes the backbone's features, pooled or not.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        if backbone.head_norm is not None:
            raise ValueError(
                f"{backbone.name} still holds a norm that belongs to the head: "
                "give backbone.take_head_norm() to Head"
            )
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        logits: Tensor = self.head(self.backbone(x, start))
        return logits

    @property
    def groups(self) -> dict[str, nn.Module]:
        """The layer groups in order: every parameter is in exactly one of them."""
        return {**dict(self.backbone.blocks.named_children()), HEAD: self.head}

    def locate(self, train_from: str) -> int:
        """The index of the first layer group that learns.

        `train_from` is a block's name, 'top' (the last block that has convolutions, attention or
        other matrices, not just a norm), 'head', or 'all'. Raises UserError for another.
        """
        if train_from == ALL:
            return 0
        if train_from == TOP:
            blocks = enumerate(self.backbone.blocks)
            return max(i for i, block in blocks if any(p.dim() > 1 for p in block.parameters()))
        names = list(self.groups)
        if train_from not in names:
            raise errors.unknown("train_from", train_from, [*names, TOP, ALL])
        return names.index(train_from)


@dataclass(frozen=True)
class GroupParameters:
    """How many parameters a layer group has, and how many of them learn."""

    group: str
    total: int
    trainable: int


def parameter_table(classifier: Classifier) -> tuple[GroupParameters, ...]:
    """One row a layer group, in order; trainable is what has `requires_grad`."""
    return tuple(
        GroupParameters(
            group=name,
            total=sum(p.numel() for p in module.parameters()),
            trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        )
        for name, module in classifier.groups.items()
    )
