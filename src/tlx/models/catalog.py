"""The names of the networks, torchvision's and our own, without importing torch."""

from collections.abc import Mapping

from tlx import errors

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "alexnet": ("alexnet",),
    "cnn": ("cnn4",),  # our own: there are no pretrained weights of it
    "convnext": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    "densenet": ("densenet121", "densenet161", "densenet169", "densenet201"),
    "efficientnet": (
        *(f"efficientnet_b{i}" for i in range(8)),
        *(f"efficientnet_v2_{size}" for size in "sml"),
    ),
    "googlenet": ("googlenet",),
    "inception": ("inception_v3",),
    "maxvit": ("maxvit_t",),
    "mnasnet": ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    "mobilenet": ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    "regnet": (
        *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf")),
        *("regnet_x_16gf", "regnet_x_32gf"),
        *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf")),
        *("regnet_y_16gf", "regnet_y_32gf", "regnet_y_128gf"),
    ),
    "resnet": (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("wide_resnet50_2", "wide_resnet101_2"),
    ),
    "shufflenet": tuple(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    "squeezenet": ("squeezenet1_0", "squeezenet1_1"),
    "swin": ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"),
    "vgg": tuple(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "vit": ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"),
}

BACKBONES: tuple[str, ...] = tuple(sorted(name for names in FAMILIES.values() for name in names))

TORCHVISION: tuple[str, ...] = tuple(name for name in BACKBONES if name not in FAMILIES["cnn"])


def family_of(name: str) -> str:
    """The family that the network `name` belongs to. Raises UserError for an unknown name."""
    for family, names in FAMILIES.items():
        if name in names:
            return family
    raise errors.unknown("backbone", name, BACKBONES)
