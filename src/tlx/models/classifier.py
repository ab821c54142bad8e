"""A classifier is a backbone with a head, seen as layer groups: the blocks, then the head."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlx import errors
from tlx.models.backbones import Backbone, Place, layers
from tlx.models.heads import Head

HEAD = "head"
ALL = "all"
TOP = "top"


@dataclass(frozen=True)
class Boundary:
    """Where learning starts: at `path`, in the layer group of index `group`.

    `path` is the group's name, followed by a module's inside it where learning starts there:
    `layer4` or `layer4.1.conv2`. So `group` is also how many layer groups are wholly frozen.
    """

    group: int
    path: str


class Classifier(nn.Module):
    """Images (B, 3, H, W), or what block `start` takes in, to logits (B, num_outputs).

    `start` may lie inside a block (see `Place`); `start=len(backbone.blocks)` takes the backbone's
    features, pooled or not.
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
        self.batchnorm_momenta: dict[str, float | None] = {
            path: module.momentum
            for path, module, _ in self.modules_from(HEAD)
            if isinstance(module, _BatchNorm)
        }

    def forward(self, x: Tensor, start: int | Place | None = None) -> Tensor:
        # None: the exporter to ONNX makes a tensor of any other default
        logits: Tensor = self.head(self.backbone(x, 0 if start is None else start))
        return logits

    @property
    def groups(self) -> dict[str, nn.Module]:
        """The layer groups in order: every parameter is in exactly one of them."""
        return {**dict(self.backbone.blocks.named_children()), HEAD: self.head}

    @property
    def weighted_blocks(self) -> list[str]:
        """The blocks that have convolutions, attention or other matrices, not just a norm."""
        blocks = self.backbone.blocks.named_children()
        return [name for name, b in blocks if any(p.dim() > 1 for p in b.parameters())]

    def locate(self, train_from: str) -> int:
        """The index of the first layer group that learns, if only from a module inside it on."""
        return self.boundary(train_from).group

    def cut(self, train_from: str) -> Place:
        """The last place with nothing before it that learns: up to it features can be cached."""
        found = self.boundary(train_from)
        name, *inside = found.path.split(".")
        own = list(layers(self.groups[name]))
        return found.group, own.index(inside[0]) if inside and own else 0

    def boundary(self, train_from: str) -> Boundary:
        """Where learning starts.

        `train_from` is a block's name, 'head', 'all', a count such as '-2' (the last two of the
        weighted blocks; a norm after them learns with them), 'top' (the same as '-1'), or a
        block's name with the path of a module inside it. Raises UserError for another.
        """
        names = list(self.groups)
        path = self._spelled_out(train_from)
        name = path.partition(".")[0]
        if name == HEAD and path != HEAD:
            raise errors.UserError(
                f"train_from={train_from}: the head is new and always learns as a whole; "
                "train_from=head freezes everything before it."
            )
        if name not in self.backbone.block_names and path != HEAD:
            raise errors.unknown("train_from", train_from, [*names, TOP, ALL])
        paths = [path for path, _ in self.groups[name].named_modules(prefix=name)]
        if path not in paths:
            raise errors.unknown("train_from", train_from, paths)
        return Boundary(names.index(name), path)

    def _spelled_out(self, train_from: str) -> str:
        if train_from == ALL:
            return self.backbone.block_names[0]
        if train_from == TOP:
            return self.weighted_blocks[-1]
        if re.fullmatch(r"-[1-9]\d*", train_from):
            blocks = self.weighted_blocks
            if -int(train_from) > len(blocks):
                raise errors.UserError(
                    f"train_from={train_from}: {self.backbone.name} has {len(blocks)} blocks "
                    f"to count, {blocks[0]} to {blocks[-1]}; for everything use train_from=all."
                )
            return blocks[int(train_from)]
        return train_from

    def modules_from(self, train_from: str) -> Iterator[tuple[str, nn.Module, bool]]:
        """Each module of the layer groups in order, by its path, and whether it itself learns.

        Inside a block the order is that of registration; a module that contains the one where
        learning starts comes before it, so that the parameters it holds itself are frozen.
        """
        first = self.boundary(train_from).path
        learns = False
        for name, group in self.groups.items():
            for path, module in group.named_modules(prefix=name):
                learns = learns or path == first
                yield path, module, learns


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
