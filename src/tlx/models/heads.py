"""A head turns the features of a backbone into one row of logits an image."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from tlx import errors
from tlx.specs import check_layers

POOLS = ("avg", "flatten")
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {  # of all that `specs` names
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softmax": partial(nn.Softmax, dim=1),
}
HARMFUL: Mapping[str, str] = {
    "sigmoid": "squeezes every unit into 0 to 1 with a slope of at most 1/4, which the gradient is "
    "multiplied by",
    "softmax": "lets the units of a layer compete for a sum of 1: each comes to about 1/width, "
    "and the gradient that it passes on to about 1/width of ReLU's",
}


def check_activation(activation: str, *, allow_softmax: bool) -> None:
    """Raises UserError for one that spoils a hidden layer, unless that is allowed."""
    if activation in HARMFUL and not allow_softmax:
        choices = " | ".join(name for name in ACTIVATIONS if name not in HARMFUL)
        raise errors.UserError(
            f"head.activation={activation} {HARMFUL[activation]}. For hidden layers take "
            f"{choices}; the classes' own softmax or sigmoid is in the loss. To see what it costs, "
            "set head.allow_softmax=true."
        )


class ClassToken(nn.Module):
    """Tokens (B, S, C) to the first of them, (B, 1, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, :1]


class Head(nn.Module):
    """Features (B, C, H, W), (B, S, C) or (B, C) to logits (B, num_outputs).

    `pool` has no parameters and changes nothing on a second run, so that the head takes pooled
    features too. `layers` is all the rest; `output` its last layer.
    """

    def __init__(  # noqa: PLR0913  # one argument for each choice in conf/head
        self,
        feature_shape: tuple[int, ...],
        num_outputs: int,
        *,
        pool: str,
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        norm: nn.Module | None = None,
    ) -> None:
        """`feature_shape` is without the batch, `dropout` a fraction, `norm` made for maps.

        'avg' averages a map, takes the class token of a sequence and a vector as it is; 'flatten'
        keeps everything.
        Dropout follows each hidden layer, or stands before the output if there is none.

        Raises UserError for an unknown name or a number out of its range.
        """
        super().__init__()
        _check(num_outputs, pool)
        check_layers(hidden, activation, dropout)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if norm is not None:
            layers["norm"] = norm
        layers["flatten"] = nn.Flatten()
        width = _pooled_width(feature_shape, pool)
        for i, hidden_width in enumerate(hidden, 1):
            layers[f"linear{i}"] = nn.Linear(width, hidden_width)
            layers[f"activation{i}"] = ACTIVATIONS[activation]()
            layers[f"dropout{i}"] = nn.Dropout(dropout)
            width = hidden_width
        if dropout > 0 and not hidden:
            layers["dropout"] = nn.Dropout(dropout)
        layers["output"] = nn.Linear(width, num_outputs)
        self.pool = _pool(feature_shape, pool)
        self.layers = nn.Sequential(layers)

    @property
    def output(self) -> nn.Linear:
        """The layer that gives the logits."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.pool(features))
        return logits


def _pool(feature_shape: tuple[int, ...], pool: str) -> nn.Module:
    if pool == "flatten" or len(feature_shape) == 1:
        return nn.Identity()
    return nn.AdaptiveAvgPool2d(1) if len(feature_shape) == 3 else ClassToken()


def _pooled_width(feature_shape: tuple[int, ...], pool: str) -> int:
    if pool == "flatten":
        return math.prod(feature_shape)
    return feature_shape[0] if len(feature_shape) == 3 else feature_shape[-1]


def _check(num_outputs: int, pool: str) -> None:
    if pool not in POOLS:
        raise errors.unknown("head.pool", pool, POOLS)
    if num_outputs < 1:
        raise errors.UserError(f"a head needs at least one output, not {num_outputs}")
