"""A backbone is an ordered list of named blocks: torchvision's networks, without their head.

Everything the program knows about architectures is in this file: one function a family, which
names torchvision's modules in the order in which its `forward` runs them, and one row of facts.
"""

import math
import re
import textwrap
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model  # type: ignore[attr-defined]  # lacks an __all__
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.vision_transformer import interpolate_embeddings

from tlx import errors
from tlx.models import catalog

NATIVE_SIZE = 224  # pixels; for which torchvision builds networks of a fixed size
_POSITIONS = "encoder.pos_embedding"  # ViT's, (1, 1 + patches, C)


class Backbone(nn.Module):
    """Blocks that turn images (B, 3, H, W), float32 and normalised, into features.

    Features are maps (B, C, H', W'), or tokens (B, S, C) of which the first is the class token.
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

    def forward(self, x: Tensor, start: int | str = 0, stop: int | None = None) -> Tensor:
        """Run the blocks from `start` up to, not including, `stop` on what `start` takes in."""
        first = self.block_index(start) if isinstance(start, str) else start
        for block in list(self.blocks)[first:stop]:
            x = block(x)
        return x

    def take_head_norm(self) -> nn.Module | None:
        """Hand the norm over to a head: afterwards it is no longer part of the backbone."""
        norm, self.head_norm = self.head_norm, None
        return norm

    @property
    def num_features(self) -> int:
        """Channels of the final map, or the width of a token."""
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
    state_dict: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """Build the named network with torchvision and divide it into blocks.

    `state_dict` has torchvision's keys; those of its classifier and auxiliary heads are ignored
    and may be absent. Its tensors are copied, as float32, and stay on their device. Without it
    the weights are torchvision's random ones. `image_size`, in pixels, is checked; it fixes the
    position embedding of ViT and the grid of MaxViT, which is else that of the weights, or 224.

    Raises UserError for an unknown name, a size that does not fit, or weights that do not.
    """
    family = _FAMILIES[catalog.family_of(name)]
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


# ---- What is particular to one family


@dataclass(frozen=True)
class _Family:
    blocks: Callable[[Any], dict[str, nn.Module]]
    unused: tuple[str, ...]  # torchvision's classifier and auxiliary heads, as module paths
    options: Mapping[str, Any] = field(default_factory=dict)  # of torchvision's builder
    is_convolutional: bool = True  # whether memory in channels-last order makes sense
    head_norm: Callable[[Any], nn.Module] | None = None
    wide_classifier: bool = False  # holds all Linear layers, too large to be filled for nothing
    size_step: Callable[[str], int] | None = None  # built for one size, a multiple of this
    size_option: Callable[[int], dict[str, Any]] = lambda _: {}
    old_keys: tuple[str, str] = (r"(?!)", "")  # pattern and replacement for keys of older files


def _chain(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _stem_and_rest(modules: Iterable[nn.Module], rest: str) -> dict[str, nn.Module]:
    stem, *others = modules
    return {"stem": stem} | {f"{rest}{i}": other for i, other in enumerate(others, 1)}


def _add_pool(blocks: Mapping[str, nn.Module], pool: nn.Module) -> None:
    """Let the last block end with `pool`: a hook, so that its layers keep their names."""
    last = list(blocks.values())[-1]
    last.add_module("pool", pool)
    last.register_forward_hook(_run_pool)


def _run_pool(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    pooled: Tensor = module.get_submodule("pool")(output)
    return pooled


def _plain(model: Any, starts: Callable[[nn.Module, nn.Module], bool]) -> dict[str, nn.Module]:
    """Blocks of numbered layers; a new block starts where `starts(previous, layer)`."""
    words = {nn.Conv2d: "conv{}", nn.BatchNorm2d: "bn{}", nn.ReLU: "relu{}", nn.MaxPool2d: "pool"}
    blocks: list[dict[str, nn.Module]] = [{}]
    previous, number = model.features[0], 0
    for layer in model.features:
        if starts(previous, layer) and blocks[-1]:
            blocks.append({})
            number = 0
        number += isinstance(layer, nn.Conv2d)
        blocks[-1][words[type(layer)].format(number)] = layer
        previous = layer
    return {f"block{i}": _chain(layers) for i, layers in enumerate(blocks, 1)}


def _alexnet(model: Any) -> dict[str, nn.Module]:
    return _plain(model, lambda _, layer: isinstance(layer, nn.Conv2d))


def _vgg(model: Any) -> dict[str, nn.Module]:
    return _plain(model, lambda previous, _: isinstance(previous, nn.MaxPool2d))


def _squeezenet(model: Any) -> dict[str, nn.Module]:
    convolution, relu, pool, *layers = model.features
    blocks: dict[str, nn.Module] = {
        "stem": _chain({"conv": convolution, "relu": relu, "pool": pool})
    }
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            _add_pool(blocks, layer)
        else:
            blocks[f"fire{len(blocks) + 1}"] = layer
    return blocks


def _inception(model: Any) -> dict[str, nn.Module]:
    """Inception v3 and GoogLeNet: all children up to the average pool, with torchvision's names."""
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_children():
        if name == "avgpool":
            break
        if isinstance(module, nn.MaxPool2d):
            _add_pool(blocks, module)
        else:
            blocks[name] = module
    return blocks


def _resnet(model: Any) -> dict[str, nn.Module]:
    stem = {name: getattr(model, name) for name in ("conv1", "bn1", "relu", "maxpool")}
    layers = {name: getattr(model, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    return {"stem": _chain(stem), **layers}


def _densenet(model: Any) -> dict[str, nn.Module]:
    layers = dict(model.features.named_children())
    stem = {name: layers.pop(name) for name in ("conv0", "norm0", "relu0", "pool0")}
    last = {"norm": layers.pop("norm5"), "relu": nn.ReLU(inplace=True)}
    return {"stem": _chain(stem), **layers, "norm5": _chain(last)}


def _shufflenet(model: Any) -> dict[str, nn.Module]:
    stem = _chain({"conv1": model.conv1, "maxpool": model.maxpool})
    stages = {name: getattr(model, name) for name in ("stage2", "stage3", "stage4", "conv5")}
    return {"stem": stem, **stages}


def _mobilenet(model: Any) -> dict[str, nn.Module]:
    *blocks, last = model.features
    return {**_stem_and_rest(blocks, "block"), "conv": last}


def _efficientnet(model: Any) -> dict[str, nn.Module]:
    *stages, last = model.features
    return {**_stem_and_rest(stages, "stage"), "conv": last}


def _mnasnet(model: Any) -> dict[str, nn.Module]:
    layers = dict(model.layers.named_children())
    stem = {name: layers.pop(name) for name in map(str, range(8))}
    last = {name: layers.pop(name) for name in ("14", "15", "16")}
    return {**_stem_and_rest([_chain(stem), *layers.values()], "stage"), "conv": _chain(last)}


def _regnet(model: Any) -> dict[str, nn.Module]:
    return {"stem": model.stem, **dict(model.trunk_output.named_children())}


def _staged(model: Any) -> dict[str, nn.Module]:
    """ConvNeXt and Swin: each stage but the first starts with what halves the map."""
    stem, first, *others = model.features
    stages = [
        _chain({"downsample": downsample, **dict(stage.named_children())})
        for downsample, stage in zip(others[::2], others[1::2], strict=True)
    ]
    return _stem_and_rest([stem, first, *stages], "stage")


def _swin(model: Any) -> dict[str, nn.Module]:
    return {**_staged(model), "norm": _chain({"norm": model.norm, "permute": model.permute})}


def _maxvit(model: Any) -> dict[str, nn.Module]:
    return _stem_and_rest([model.stem, *model.blocks], "stage")


def _maxvit_norm(model: Any) -> LayerNorm2d:
    """MaxViT's norm works on vectors (B, C); as ConvNeXt's it also works on maps."""
    norm = model.classifier[2]
    on_maps = LayerNorm2d(norm.normalized_shape, eps=norm.eps, device="meta")
    on_maps.weight, on_maps.bias = norm.weight, norm.bias
    return on_maps


class _Embedding(nn.Module):
    """Images (B, 3, H, W) to tokens (B, 1 + patches, C), as VisionTransformer and its Encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.class_token: nn.Parameter = model.class_token
        self.conv_proj: nn.Module = model.conv_proj
        self.pos_embedding: nn.Parameter = model.encoder.pos_embedding
        self.dropout: nn.Module = model.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).permute(0, 2, 1)
        token = self.class_token.expand(len(images), -1, -1)
        tokens: Tensor = self.dropout(torch.cat([token, patches], dim=1) + self.pos_embedding)
        return tokens


def _vit(model: Any) -> dict[str, nn.Module]:
    layers = {f"layer{i}": layer for i, layer in enumerate(model.encoder.layers)}
    return {"embedding": _Embedding(model), **layers, "norm": model.encoder.ln}


_NO_EXTRAS = {"aux_logits": False, "transform_input": False, "init_weights": True}

_FAMILIES: Mapping[str, _Family] = {
    "alexnet": _Family(_alexnet, ("classifier",), wide_classifier=True),
    "convnext": _Family(_staged, ("classifier.2",), head_norm=lambda model: model.classifier[0]),
    "densenet": _Family(
        _densenet,
        ("classifier",),
        old_keys=(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2"),
    ),
    "efficientnet": _Family(_efficientnet, ("classifier",)),
    "googlenet": _Family(_inception, ("fc", "aux1", "aux2"), options=_NO_EXTRAS),
    "inception": _Family(_inception, ("fc", "AuxLogits"), options=_NO_EXTRAS),
    "maxvit": _Family(
        _maxvit,
        ("classifier.3", "classifier.5"),
        head_norm=_maxvit_norm,
        size_step=lambda _: 224,  # five halvings down to windows of 7
        size_option=lambda size: {"input_size": (size, size)},
    ),
    "mnasnet": _Family(_mnasnet, ("classifier",)),
    "mobilenet": _Family(_mobilenet, ("classifier",)),
    "regnet": _Family(_regnet, ("fc",)),
    "resnet": _Family(_resnet, ("fc",)),
    "shufflenet": _Family(_shufflenet, ("fc",)),
    "squeezenet": _Family(_squeezenet, ("classifier",)),
    "swin": _Family(_swin, ("head",), is_convolutional=False),
    "vgg": _Family(_vgg, ("classifier",), wide_classifier=True),
    "vit": _Family(
        _vit,
        ("heads",),
        is_convolutional=False,
        size_step=lambda name: int(name.rpartition("_")[2]),  # the patch, as in vit_b_16
        size_option=lambda size: {"image_size": size},
    ),
}


# ---- Building and loading torchvision's network


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
    name: str, family: _Family, options: Mapping[str, Any], *, initialise: bool
) -> nn.Module:
    """torchvision's network without its classifier; without `initialise` to be filled by _load."""
    device = torch.get_default_device()
    if not initialise or device.type == "meta":
        context = torch.device("cpu"), _Unallocated(lambda _: True)
    else:
        context = device, _Unallocated(lambda t: family.wide_classifier and t.dim() == 2)
    with context[0], context[1]:
        model: nn.Module = get_model(name, weights=None, **options)
    modules = dict(model.named_modules())
    for path in family.unused:
        if path in modules:
            model.set_submodule(path, nn.Identity())
    return model.to(device) if device.type == "meta" and initialise else model


def _fixed_size(
    name: str, family: _Family, image_size: int | None, state_dict: Mapping[str, Tensor]
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
    family: _Family,
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
