"""Convolutions by Winograd's algorithm equal the direct ones, and step aside where they must."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tlx.composition import compose
from tlx.config import parse
from tlx.models.folder import SavedModel, build_classifier, load_model, save_model
from tlx.models.winograd import (
    DENOMINATORS,
    TILES,
    Grid,
    WinogradConv2d,
    best_grid,
    bf16_pays,
    transformed,
    transforms,
    use_winograd,
)
from tlx.training.plan import architecture, preprocessing

SHAPE = (8, 128, 16, 16)


def pair(padding: int = 1, *, bias: bool = True) -> tuple[nn.Sequential, nn.Sequential]:
    """A convolution and what follows in place, the direct way and the other."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 96, 3, padding=padding, bias=bias)
    direct = nn.Sequential(conv, nn.SiLU(inplace=True)).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(direct)
    use_winograd(fast)
    return direct, fast


def always(monkeypatch: pytest.MonkeyPatch, m: int, *, ahead: bool = True) -> None:
    """Choose m, whatever is faster; without `ahead` for gradients alone."""

    def choice(
        shape: tuple[int, ...], _: object, padding: int, dtype: torch.dtype, *, back: bool
    ) -> Grid | None:
        return Grid.of(shape, padding, m) if ahead or back else None

    monkeypatch.setattr("tlx.models.winograd.best_grid", choice)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() < 2e-5 * b.norm())


@pytest.mark.parametrize("settings", [{"padding": 0}, {"bias": False}, {}])
@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("sides", [(14, 14), (9, 13), (3, 7)])
@pytest.mark.parametrize("way", ["whole", "parts", "gradients alone"])
def test_outputs_and_gradients(monkeypatch, settings, m, sides, way):
    """Of sides that tiles divide and do not."""
    direct, fast = pair(**settings)
    if way == "parts":
        monkeypatch.setattr("tlx.models.winograd.PART_BYTES", 1 << 17)
    always(monkeypatch, m, ahead=way != "gradients alone")
    found = []
    for network in (direct, fast):
        x = torch.randn(3, 128, *sides, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = network(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y, x.grad, *(p.grad for p in network.parameters())])
    assert all(close(b, a) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("way", ["whole", "parts", "gradients alone"])
def test_bf16_while_it_learns(monkeypatch, m, way):
    """Near the float32 values; without gradients, as in evaluation, the direct way's to the bit."""
    direct, fast = pair()
    if way == "parts":
        monkeypatch.setattr("tlx.models.winograd.PART_BYTES", 1 << 16)
    always(monkeypatch, m, ahead=way != "gradients alone")
    monkeypatch.setattr("tlx.models.winograd.bf16_pays", lambda: True)
    found = []
    for network in (direct, fast):
        x = torch.randn(3, 128, 9, 13, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=network is fast):
            y = network(x)
        (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in network.parameters())])
    assert found[1][0].dtype == torch.bfloat16
    errors = [float((b - a).norm() / a.norm()) for a, b in zip(*found, strict=True)]
    assert all(1e-4 < error < 0.04 for error in errors), errors
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), direct(x))
    fast.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x.detach()), direct(x.detach()))  # frozen
        assert torch.equal(fast(x), direct(x)) is (way == "gradients alone")
        under = transformed(direct[0].weight.detach(), m, torch.bfloat16)
    assert torch.equal(under, transformed(direct[0].weight.detach(), m, torch.bfloat16))


@pytest.mark.parametrize("m", TILES)
def test_transforms_are_exact_in_bf16(m):
    for transform in (*transforms(m)[::2], transforms(m)[1] * DENOMINATORS[m] ** 2):
        assert torch.allclose(transform.bfloat16().float(), transform, rtol=1e-6, atol=0)


def test_bf16_on_which_processors(monkeypatch):
    for flags, pays in [
        (("avx512_bf16",), True),
        (("avx512_bf16", "amx_bf16"), False),
        ((), False),
    ]:
        monkeypatch.setattr("tlx.models.winograd.cpu_flags", lambda flags=flags: set(flags))
        assert bf16_pays() is pays


@pytest.mark.parametrize("learning", ["x", "weight", "bias"])
def test_only_what_learns_has_gradients(monkeypatch, learning):
    always(monkeypatch, 4)
    found = []
    for network in pair():
        conv, x = network[0].requires_grad_(False), torch.ones(SHAPE)
        tensors = {"x": x, "weight": conv.weight, "bias": conv.bias}
        tensors[learning].requires_grad_()
        network(x).sum().backward()
        assert [name for name, t in tensors.items() if t.grad is not None] == [learning]
        found.append(tensors[learning].grad)
    assert close(*found)


@pytest.mark.filterwarnings("ignore:.*jit.trace")
def test_steps_aside(monkeypatch):
    """In double, in half, exported and for shapes where it is slower."""
    direct, fast = pair()

    def never(*_: object) -> None:
        raise AssertionError("the direct way was wanted")

    assert best_grid(SHAPE, (128, 96), 1, back=True) is not None
    assert best_grid(SHAPE, (128, 96), 1, back=False) is None
    monkeypatch.setattr("tlx.models.winograd.Winograd.apply", never)
    x = torch.randn(SHAPE)
    with pytest.raises(AssertionError, match="direct way"):
        fast(x)
    with torch.no_grad():
        assert torch.equal(fast(x), direct(x))
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(fast(x), direct(x))
    exported = torch.export.export(fast, (x,)).module()
    assert torch.equal(exported(x), direct(x))
    assert torch.equal(torch.jit.trace(fast, x)(x), direct(x))
    assert torch.equal(fast.double()(x.double()), direct.double()(x.double()))


def test_which_convolutions():
    """Weights and names stay; strides, groups, dilations, other sizes and paddings are left."""
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 3, padding="same"),
    )  # fmt: skip
    before = {name: value.clone() for name, value in network.state_dict().items()}
    use_winograd(network)
    assert [type(m) is WinogradConv2d for m in network] == [True, True] + [False] * 6
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("winograd", [True, False])
def test_the_option_holds_for_the_saved_model(tmp_path, winograd):
    config = parse(compose(["backbone=squeezenet1_1", f"trainer.winograd={str(winograd).lower()}"]))
    preprocess = preprocessing(config)
    design = architecture(config, 2, preprocess)
    save_model(tmp_path, SavedModel(build_classifier(design), preprocess, ("a", "b")), design)
    for classifier in (build_classifier(design), load_model(tmp_path).classifier):
        assert any(isinstance(m, WinogradConv2d) for m in classifier.modules()) is winograd
