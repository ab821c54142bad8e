"""Everything that is looked for in the network before it trains, by what it costs."""

from tlx.diagnosis.activity import (
    finite_values,
    living_units,
    outputs_are_logits,
    train_and_evaluation_mode,
)
from tlx.diagnosis.fitting import one_batch
from tlx.diagnosis.loaded import tensors_finite, weights_loaded
from tlx.diagnosis.rates import first_steps
from tlx.diagnosis.structure import everything_learns, random_head, softmax_or_sigmoid, tiny_batches

CHEAP = (
    weights_loaded, tensors_finite, softmax_or_sigmoid, everything_learns, random_head,
    tiny_batches,
)  # fmt: skip
FULL = (
    finite_values, living_units, outputs_are_logits, train_and_evaluation_mode, first_steps,
    one_batch,
)  # fmt: skip
