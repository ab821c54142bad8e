"""A backbone is an ordered list of named blocks: torchvision's networks, without their head."""

import math
import re
import textwrap
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model  # type: ignore[attr-defined]  # lacks an __all__
from torchvision.models.vision_transformer import interpolate_embeddings

from tlx import errors
from tlx.models.families import Family, adapter

NATIVE_SIZE = 224  # pixels; for which torchvision builds networks of a fixed size
_POSITIONS = "encoder.pos_embedding"  # ViT's, (1, 1 + patches, C)


# (b, n): before layer n of block b; n is 0 unless the block is a plain sequence of layers
Place = tuple[int, int]


def layers(block: nn.Module) -> dict[str, nn.Module]:
    """What a block runs one after the other, by name; empty if there is more to it."""
    if type(block) is not nn.Sequential:
        return {}
    return {name: layer for name, layer in block._modules.items() if layer is not None}


def _place(start: int | Place) -> Place:
    return (start, 0) if isinstance(start, int) else start


class Backbone(nn.Module):
    """Blocks that turn images (B, 3, H, W), float32 and normalised, into features.

    Features are maps (B, C, H', W'), tokens (B, S, C) of which the first is the class token, or
    vectors (B, C).
    `head_norm` is a pretrained norm that works on pooled maps. It belongs to the head, which
    takes it over by `take_head_norm()`.
    """

    def __init__(
        self,
        name: str,
        blocks: Mapping[str, nn.Module],
        *,
        image_size: int | None,
        is_convolutional: bool,
        head_norm: nn.Module | None = None,
    ) -> None:
        """`image_size` is the only side in pixels that works; None when the network is flexible."""
        super().__init__()
        self.name = name
        self.blocks = nn.Sequential(OrderedDict(blocks))
        self.image_size = image_size
        self.is_convolutional = is_convolutional
        self.head_norm = head_norm
        self._shapes: dict[int, tuple[int, ...]] = {}

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.blocks.named_children())

    def block_index(self, block: str) -> int:
        """The place of the named block. Raises UserError for an unknown name."""
        if block not in self.block_names:
            raise errors.unknown(f"block of {self.name}", block, self.block_names)
        return self.block_names.index(block)

    def forward(
        self, x: Tensor, start: int | str | Place = 0, stop: int | Place | None = None
    ) -> Tensor:
        """Run the blocks from `start` up to, not including, `stop` on what `start` takes in."""
        first = self.block_index(start) if isinstance(start, str) else start
        last = len(self.blocks) if stop is None else stop
        for module in self._between(_place(first), _place(last)):
            x = module(x)
        return x

    def _between(self, start: Place, stop: Place) -> Iterator[nn.Module]:
        """Blocks, and of those at either end, if need be, some layers."""
        for index in range(start[0], min(stop[0] + 1, len(self.blocks))):
            block = self.blocks[index]
            begin = start[1] if index == start[0] else 0
            end = stop[1] if index == stop[0] else None
            if begin == 0 and end is None:
                yield block
            else:
                yield from list(layers(block).values())[begin:end]

    def before(self, place: Place) -> list[nn.Module]:
        """The blocks before it, and the layers of its own block."""
        return list(self._between((0, 0), place))

    @property
    def places(self) -> dict[Place, str]:
        """Where the network can be cut, in order, and the path of what follows."""
        found = {}
        for index, (name, block) in enumerate(self.blocks.named_children()):
            found[index, 0] = name
            found |= {(index, n): f"{name}.{layer}" for n, layer in enumerate(layers(block)) if n}
        return found

    def take_head_norm(self) -> nn.Module | None:
        """Hand the norm over to a head: afterwards it is no longer part of the backbone."""
        norm, self.head_norm = self.head_norm, None
        return norm

    @property
    def num_features(self) -> int:
        """Channels of the final map, or the width of a token or vector."""
        shape = next(iter(self._shapes.values()), None)
        if shape is None:
            shape = self.feature_shape(self.image_size or NATIVE_SIZE)
        return shape[0] if len(shape) == 3 else shape[-1]

    @cached_property
    def min_size(self) -> int:
        """The smallest side of a square image, in pixels, at which every block works."""
        if self.image_size is not None:
            return self.image_size
        return 1 + bisect_left(range(1, NATIVE_SIZE), True, key=self._works)

    def feature_shape(self, image_size: int) -> tuple[int, ...]:
        """The shape of the features of one square image, found without computing them.

        Raises UserError when the network does not work at that size.
        """
        if self.image_size not in (None, image_size):
            raise errors.UserError(
                f"this {self.name} was built for image_size={self.image_size} "
                f"and takes no other, such as {image_size}"
            )
        try:
            return self._trial(image_size)
        except RuntimeError as error:
            if image_size >= self.min_size:
                raise
            raise errors.UserError(
                f"image_size={image_size} is too small for {self.name}: "
                f"take at least {self.min_size}"
            ) from error

    def _works(self, image_size: int) -> bool:
        try:
            self._trial(image_size)
        except RuntimeError:
            return False
        return True

    def _trial(self, image_size: int) -> tuple[int, ...]:
        if image_size in self._shapes:
            return self._shapes[image_size]
        # Two images, because a BatchNorm in training mode refuses one value per channel.
        images = torch.empty(2, 3, image_size, image_size, device="meta")
        tensors = chain(self.blocks.named_parameters(), self.blocks.named_buffers())
        shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
        with torch.no_grad():
            features: Tensor = torch.func.functional_call(self.blocks, shapes, (images,))
        self._shapes[image_size] = tuple(features.shape[1:])
        return self._shapes[image_size]


def build_backbone(
    name: str,
    *,
    image_size: int | None = None,
    classifier: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """Build the named network with torchvision and divide it into blocks.

    `state_dict` has torchvision's keys; those of its classifier and auxiliary heads are ignored
    and may be absent. Its tensors are copied, as float32, and stay on their device. Without it
    the weights are torchvision's random ones. `image_size`, in pixels, is checked; it fixes the
    position embedding of ViT and the grid of MaxViT, which is else that of the weights, or 224.
    With `classifier` the hidden layers of torchvision's classifier are the last blocks.

    Raises UserError for an unknown name, a size that does not fit, or weights that do not.
    """
    family = adapter(name, classifier=classifier)
    if classifier and state_dict is not None:
        check_has_classifier(state_dict)
    fixed = _fixed_size(name, family, image_size, state_dict or {})
    options = {**family.options, **(family.size_option(fixed) if fixed is not None else {})}
    model = _construct(name, family, options, initialise=state_dict is None)
    if state_dict is not None:
        _load(model, name, family, state_dict, fixed)
    backbone = Backbone(
        name,
        family.blocks(model),
        image_size=fixed,
        is_convolutional=family.is_convolutional,
        head_norm=family.head_norm(model) if family.head_norm is not None else None,
    )
    if image_size is not None:
        backbone.feature_shape(image_size)
    return backbone


def check_has_classifier(state_dict: Mapping[str, Tensor]) -> None:
    """Raises UserError unless the weights (torchvision's keys) go beyond the convolutions."""
    if not any(key.startswith("classifier.") for key in state_dict):
        raise errors.UserError(
            "these weights have no classifier, which backbone.classifier=true takes over; "
            "leave it out, or give a file of the whole network (backbone.weights=FILE)"
        )


class _Unallocated(TorchFunctionMode):
    """Parameters of which `where` is true get a shape but no memory: filling them costs nothing.

    Layers allocate their parameters by `torch.empty`. `torch.device("meta")` cannot stand in for
    this: RegNet computes its widths with tensors, and Swin the buffers that it keeps.
    """

    def __init__(self, where: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            tensor = torch.empty(*args, **{**kwargs, "device": "meta"})
            if self.where(tensor):
                return tensor
        return func(*args, **kwargs)


def _construct(
    name: str, family: Family, options: Mapping[str, Any], *, initialise: bool
) -> nn.Module:
    """torchvision's network without its classifier; without `initialise` to be filled by _load."""
    device = torch.empty(0).device  # get_default_device() of torch 2.7 does not know of `with`
    if not initialise or device.type == "meta":
        context = torch.device("cpu"), _Unallocated(lambda _: True)
    else:
        context = device, _Unallocated(lambda t: family.wide_classifier and t.dim() == 2)
    with context[0], context[1]:
        model = family.build() if family.build else get_model(name, weights=None, **options)
    modules = dict(model.named_modules())
    for path in family.unused:
        if path in modules:
            model.set_submodule(path, nn.Identity())
    return model.to(device) if device.type == "meta" and initialise else model


def _fixed_size(
    name: str, family: Family, image_size: int | None, state_dict: Mapping[str, Tensor]
) -> int | None:
    """The only image size at which the network will work, or None if it is flexible."""
    if family.size_step is None:
        return None
    step = family.size_step(name)
    if image_size is None:
        positions = state_dict.get(_POSITIONS)
        return NATIVE_SIZE if positions is None else math.isqrt(positions.shape[1] - 1) * step
    if image_size < step or image_size % step:
        below = image_size // step * step
        nearest = f"{below} or {below + step}" if below > 0 else str(step)
        raise errors.UserError(
            f"image_size={image_size} does not fit {name}, which needs a multiple of {step}: "
            f"take {nearest}"
        )
    return image_size


def _load(
    model: nn.Module,
    name: str,
    family: Family,
    state_dict: Mapping[str, Tensor],
    image_size: int | None,
) -> None:
    """Fill `model` with copies. torchvision's own hooks translate some keys of older files."""
    unused = tuple(f"{path}." for path in family.unused)
    state: OrderedDict[str, Tensor] = OrderedDict(
        (re.sub(*family.old_keys, key), _copy(value))
        for key, value in state_dict.items()
        if not key.startswith(unused)
    )
    if _POSITIONS in state and image_size is not None and family.size_step is not None:
        state = interpolate_embeddings(image_size, family.size_step(name), state)
    # MNASNet refuses weights without a version, which plain files do not carry.
    state._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        lines = [textwrap.shorten(line, 240) for line in str(error).splitlines()[1:5]]
        raise errors.UserError(
            f"these weights do not fit the backbone {name!r}: {' '.join(lines)}"
        ) from error


def _copy(value: Tensor) -> Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
