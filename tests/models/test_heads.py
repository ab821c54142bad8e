"""Heads: their layers in order, their pools against plain arithmetic, and what they refuse."""

import pytest
import torch
from torch import nn

from tlx import specs
from tlx.errors import UserError
from tlx.models.heads import ACTIVATIONS, Head, check_activation

PLAIN = {"pool": "avg", "hidden": (), "activation": "relu", "dropout": 0.0}


def layer_names(head: Head) -> list[str]:
    return [name for name, _ in head.layers.named_children()]


def test_average_pool_of_a_map() -> None:
    features = torch.randn(2, 5, 3, 4)
    head = Head((5, 3, 4), 7, **PLAIN)
    pooled = head.pool(features)
    torch.testing.assert_close(pooled, features.sum((2, 3), keepdim=True) / 12)
    expected = pooled.flatten(1) @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(head(features), expected)
    assert head(features).shape == (2, 7)


def test_class_token_of_a_sequence() -> None:
    tokens = torch.randn(2, 6, 5)
    head = Head((6, 5), 1, **PLAIN)
    assert torch.equal(head.pool(tokens)[:, 0], tokens[:, 0])
    assert head.output.in_features == 5


@pytest.mark.parametrize("pool", ["avg", "flatten"])
def test_a_vector_stays_as_it_is(pool: str) -> None:
    vectors = torch.randn(2, 7)
    head = Head((7,), 3, **PLAIN | {"pool": pool})
    assert torch.equal(head.pool(vectors), vectors)
    torch.testing.assert_close(head(vectors), vectors @ head.output.weight.T + head.output.bias)


@pytest.mark.parametrize(("shape", "width"), [((5, 3, 4), 60), ((6, 5), 30), ((7,), 7)])
def test_flatten(shape: tuple[int, ...], width: int) -> None:
    head = Head(shape, 1, **PLAIN | {"pool": "flatten"})
    features = torch.randn(2, *shape)
    assert torch.equal(head.layers.flatten(head.pool(features)), features.reshape(2, width))
    assert head.output.in_features == width


@pytest.mark.parametrize("pool", ["avg", "flatten"])
@pytest.mark.parametrize("shape", [(5, 3, 4), (6, 5), (7,)])
def test_pooling_twice_changes_nothing(shape: tuple[int, ...], pool: str) -> None:
    head = Head(shape, 2, **PLAIN | {"pool": pool})
    features = torch.randn(2, *shape)
    assert torch.equal(head(head.pool(features)), head(features))


def test_layers_in_order() -> None:
    head = Head((5, 3, 3), 2, pool="avg", hidden=(8, 4), activation="gelu", dropout=0.25)
    assert layer_names(head) == [
        *("flatten", "linear1", "activation1", "dropout1", "linear2", "activation2", "dropout2"),
        "output",
    ]
    widths = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
    assert widths == [(5, 8), (8, 4), (4, 2)]
    assert isinstance(head.layers.activation2, nn.GELU)
    assert head.layers.dropout2.p == 0.25


def test_dropout_before_the_output_when_nothing_is_hidden() -> None:
    assert layer_names(Head((5, 3, 3), 2, **PLAIN)) == ["flatten", "output"]
    head = Head((5, 3, 3), 2, **PLAIN | {"dropout": 0.5})
    assert layer_names(head) == ["flatten", "dropout", "output"]


def test_norm_comes_after_the_pool_and_before_flatten() -> None:
    norm = nn.GroupNorm(1, 5)
    head = Head((5, 3, 3), 2, **PLAIN, norm=norm)
    assert layer_names(head) == ["norm", "flatten", "output"]
    assert head.layers.norm is norm


def test_activations() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    expected = {  # of -1 and 2, from their definitions
        "relu": (0.0, 2.0),
        "leaky_relu": (-0.01, 2.0),
        "elu": (-0.632121, 2.0),
        "gelu": (-0.158655, 1.954500),
        "silu": (-0.268941, 1.761594),
        "tanh": (-0.761594, 0.964028),
        "sigmoid": (0.268941, 0.880797),
        "softmax": (0.047426, 0.952574),
    }
    assert set(ACTIVATIONS) == set(specs.ACTIVATIONS) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(
            ACTIVATIONS[name]()(x), torch.tensor([values]), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "max"}, r"unknown head\.pool 'max'.*Valid: avg, flatten"),
        ({"activation": "rellu"}, r"unknown head\.activation 'rellu'\. Did you mean relu"),
        ({"hidden": (8, 0)}, r"head\.hidden=\[8, 0\]: each width must be at least 1"),
        ({"dropout": 1.0}, r"head\.dropout=1\.0 is not a fraction"),
        ({"dropout": 50}, r"head\.dropout=50 is not a fraction"),
        ({"dropout": -0.1}, r"head\.dropout=-0\.1 is not a fraction"),
        ({"num_outputs": 0}, r"at least one output, not 0"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Head((5, 3, 3), **{"num_outputs": 2, **PLAIN, **change})


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_an_activation_that_spoils_a_hidden_layer_must_be_allowed(name: str) -> None:
    choices = r"relu \| leaky_relu \| elu \| gelu \| silu \| tanh;"
    with pytest.raises(UserError, match=f"head.activation={name} .*{choices}.*allow_softmax=true"):
        check_activation(name, allow_softmax=False)
    check_activation(name, allow_softmax=True)
    check_activation("relu", allow_softmax=False)


def test_a_softmax_passes_on_a_gradient_smaller_by_its_width() -> None:
    """What its error says: at equal units the Jacobian is (1 - 1/n) / n, against ReLU's 1."""
    x = torch.ones(1, 256, requires_grad=True)
    for name, expected in (("softmax", (1 - 1 / 256) / 256), ("relu", 1.0)):
        (gradient,) = torch.autograd.grad(ACTIVATIONS[name]()(x)[0, 0], x)
        assert gradient[0, 0].item() == pytest.approx(expected)
