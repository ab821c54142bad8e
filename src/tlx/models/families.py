"""What is particular to one architecture: how torchvision's network divides into named blocks.

Everything the program knows about architectures is in this file: one function a family, which
names torchvision's modules in the order in which its `forward` runs them, and one row of facts.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from tlx.errors import UserError
from tlx.models.catalog import family_of
from tlx.models.cnn import cnn4


@dataclass(frozen=True)
class Family:
    blocks: Callable[[Any], dict[str, nn.Module]]
    unused: tuple[str, ...]  # torchvision's classifier and auxiliary heads, as module paths
    options: Mapping[str, Any] = field(default_factory=dict)  # of torchvision's builder
    is_convolutional: bool = True  # whether memory in channels-last order makes sense
    head_norm: Callable[[Any], nn.Module] | None = None
    hidden: Callable[[Any], dict[str, nn.Module]] | None = None  # blocks of the classifier
    build: Callable[[], nn.Module] | None = None  # where the network is not torchvision's
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


def _hidden(model: Any) -> dict[str, nn.Module]:
    """The classifier of AlexNet and VGG up to its last layer, and what leads to it."""
    words = {nn.Linear: "linear", nn.ReLU: "relu", nn.Dropout: "dropout"}
    layers = [(words[type(layer)], layer) for layer in model.classifier[:6]]
    start = {"avgpool": model.avgpool, "flatten": nn.Flatten()}
    return {"fc1": _chain(start | dict(layers[:3])), "fc2": _chain(dict(layers[3:]))}


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

ADAPTERS: Mapping[str, Family] = {
    "alexnet": Family(_alexnet, ("classifier",), hidden=_hidden, wide_classifier=True),
    "cnn": Family(lambda model: dict(model.named_children()), (), build=cnn4),
    "convnext": Family(_staged, ("classifier.2",), head_norm=lambda model: model.classifier[0]),
    "densenet": Family(
        _densenet,
        ("classifier",),
        old_keys=(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2"),
    ),
    "efficientnet": Family(_efficientnet, ("classifier",)),
    "googlenet": Family(_inception, ("fc", "aux1", "aux2"), options=_NO_EXTRAS),
    "inception": Family(_inception, ("fc", "AuxLogits"), options=_NO_EXTRAS),
    "maxvit": Family(
        _maxvit,
        ("classifier.3", "classifier.5"),
        head_norm=_maxvit_norm,
        size_step=lambda _: 224,  # five halvings down to windows of 7
        size_option=lambda size: {"input_size": (size, size)},
    ),
    "mnasnet": Family(_mnasnet, ("classifier",)),
    "mobilenet": Family(_mobilenet, ("classifier",)),
    "regnet": Family(_regnet, ("fc",)),
    "resnet": Family(_resnet, ("fc",)),
    "shufflenet": Family(_shufflenet, ("fc",)),
    "squeezenet": Family(_squeezenet, ("classifier",)),
    "swin": Family(_swin, ("head",), is_convolutional=False),
    "vgg": Family(_vgg, ("classifier",), hidden=_hidden, wide_classifier=True),
    "vit": Family(
        _vit,
        ("heads",),
        is_convolutional=False,
        size_step=lambda name: int(name.rpartition("_")[2]),  # the patch, as in vit_b_16
        size_option=lambda size: {"image_size": size},
    ),
}


def adapter(name: str, *, classifier: bool) -> Family:
    """The row of the network `name`; with `classifier` its classifier's hidden layers are blocks.

    Raises UserError for an unknown name and for a network that has none.
    """
    family = ADAPTERS[family_of(name)]
    if not classifier:
        return family
    hidden = family.hidden
    if hidden is None:
        having = " and ".join(name for name, row in ADAPTERS.items() if row.hidden is not None)
        raise UserError(
            f"backbone.classifier=true is not for {name}: only the families {having} have hidden "
            "layers in their classifier that can be kept. Leave it out."
        )
    return replace(
        family,
        blocks=lambda model: {**family.blocks(model), **hidden(model)},
        unused=("classifier.6",),
        wide_classifier=False,
    )
