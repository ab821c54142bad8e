"""What Keras does before, at and after an unfreeze, on tiny random data.

    pip install keras==3.15.1 tensorflow-cpu==2.21.0
    python benchmarks/unfreezing/keras_model.py [1 … 7]

Each line is one measured fact and begins with its line in the table of docs/unfreezing.md.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1, 1, (64, 16, 16, 3)).astype("float32")
LABELS = RNG.integers(3, size=64)
PRETRAINING = RNG.normal(0, 1, (50, 16, 16, 16, 3)).astype("float32")
RATE = 0.02


class Subclassed(keras.Model):
    def __init__(self, base, head):
        super().__init__()
        self.base, self.pool, self.head = base, layers.GlobalAveragePooling2D(), head

    def call(self, inputs):
        return self.head(self.pool(self.base(inputs, training=False)))


def build(way="guide", dropout=0.0):
    """A frozen base of two blocks, "pretrained", and a head.

    way: `guide`, a functional model that calls base(x, training=False), as Keras's guide to
    transfer learning does; `plain`, one that calls base(x); `subclass`, with training=False again.
    """
    keras.utils.set_random_seed(0)
    base_inputs = x = keras.Input((16, 16, 3))
    for _ in range(2):
        x = layers.Conv2D(8, 3, strides=2)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.Dropout(dropout)(layers.ReLU()(x))
    base, head = keras.Model(base_inputs, x, name="base"), layers.Dense(3, name="head")
    for images in PRETRAINING:
        base(images, training=True)
    base.trainable = False
    if way == "subclass":
        model = Subclassed(base, head)
        model(IMAGES[:1])
        return model
    inputs = keras.Input((16, 16, 3))
    x = base(inputs, training=False) if way == "guide" else base(inputs)
    return keras.Model(inputs, head(layers.GlobalAveragePooling2D()(x)))


def fit(model, epochs=1, *, optimizer=None, compiles=True, shuffle=False, **settings):
    if compiles:
        model.compile(
            optimizer or keras.optimizers.SGD(RATE, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    keras.utils.set_random_seed(1)
    model.fit(IMAGES, LABELS, batch_size=8, epochs=epochs, shuffle=shuffle, verbose=0, **settings)


def unfreeze(model):
    model.get_layer("base").trainable = True


def state(model):
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in model.weights}


def moved(before, after, part=""):
    return max(abs(before[name] - after[name]).max() for name in before if part in name)


def mode_gap(model):
    """How far the model's outputs in training are from those in evaluation, at most.

    The head computes the same in both.
    """
    outputs = [model(IMAGES[:8], training=training) for training in (True, False)]
    return float(keras.ops.max(keras.ops.abs(outputs[0] - outputs[1])))


def frozen_layers():
    for way in ("guide", "plain", "subclass"):
        model = build(way)
        before = state(model)
        fit(model)
        frozen = state(model)
        gaps = mode_gap(build(way)), mode_gap(build(way, dropout=0.5))
        print(
            f"1 frozen, {way}: BatchNorm's moving_mean moved by "
            f"{moved(before, frozen, 'moving_mean'):.3g}, its gamma by "
            f"{moved(before, frozen, 'gamma'):.3g}, convolutions by "
            f"{moved(before, frozen, 'conv2d'):.3g}"
        )
        print(f"2 frozen, {way}: train and eval output differ by {gaps[0]:.3g}, "
              f"with dropout in the base by {gaps[1]:.3g}")  # fmt: skip
        unfreeze(model)
        fit(model)
        print(f"1 then unfrozen, {way}: BatchNorm's moving_mean moved by "
              f"{moved(frozen, state(model), 'moving_mean'):.3g}")  # fmt: skip
    unfrozen = state(model)
    model.get_layer("base").trainable = False
    fit(model, optimizer=keras.optimizers.AdamW(RATE))
    print("1 frozen again after an unfreeze, subclass: convolutions moved by "
          f"{moved(unfrozen, state(model), 'conv2d'):.3g}")  # fmt: skip


def unfrozen_layers():
    for compiles in (True, False):
        model = build()
        fit(model)
        unfreeze(model)
        before = state(model)
        fit(model, compiles=compiles)
        after, learns = state(model), [weight.path for weight in model.trainable_weights]
        still = [name for name in learns if np.array_equal(before[name], after[name])]
        print(
            f"3 after the unfreeze, {'' if compiles else 'not '}compiled again: {len(learns)} of "
            f"10 tensors are trainable; of these did not move: {len(still)}"
        )


def schedules():
    rates = keras.optimizers.schedules
    ways = {
        "ExponentialDecay": lambda: rates.ExponentialDecay(RATE, 8, 0.9),
        "CosineDecay": lambda: rates.CosineDecay(RATE, 16),
        "CosineDecayRestarts": lambda: rates.CosineDecayRestarts(RATE, 8),
    }
    for name, rate in ways.items():
        model, optimizer = build(), keras.optimizers.SGD(rate())
        fit(model, optimizer=optimizer)
        unfreeze(model)
        try:
            fit(model, optimizer=optimizer)
            former = "runs"
        except ValueError as error:
            former = f"ValueError: {str(error).split(':')[0]}"
        fit(model, optimizer=keras.optimizers.SGD(rate()))
        print(
            f"4 {name} over the unfreeze, compiled again with a new optimizer: runs; with the one "
            f"of the frozen phase: {former}"
        )


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def resume():
    with tempfile.TemporaryDirectory() as folder:
        for kind, dropout in (("no randomness", 0.0), ("dropout and shuffling", 0.5)):
            _resume(Path(folder), kind, dropout)


def _resume(folder, kind, dropout):
    settings = {"epochs": 3, "shuffle": dropout > 0}
    model = build(dropout=dropout)
    fit(model)
    model.save_weights(folder / "head.weights.h5")
    unfreeze(model)
    fit(model, **settings, callbacks=[keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")])
    whole = state(model)

    loaded = keras.models.load_model(folder / "1.keras")
    fit(loaded, **settings, compiles=False, initial_epoch=1)
    report(f"load_model, {kind}", loaded, whole)

    for unfreezes in (True, False):
        backup = folder / f"backup-{dropout}-{unfreezes}"
        model = build(dropout=dropout)
        model.load_weights(folder / "head.weights.h5")
        unfreeze(model)
        try:
            callbacks = [keras.callbacks.BackupAndRestore(backup), Crash()]
            fit(model, **settings, callbacks=callbacks)
        except KeyboardInterrupt:
            pass
        again = build(dropout=dropout)
        if unfreezes:
            unfreeze(again)
        fit(again, **settings, callbacks=[keras.callbacks.BackupAndRestore(backup)])
        way = "unfrozen by hand" if unfreezes else "not unfrozen by hand"
        report(f"BackupAndRestore, {way}, {kind}", again, whole)


def report(way, model, whole):
    pairs = zip(whole.values(), state(model).values(), strict=True)
    print(
        f"5 unfrozen after epoch 1 of 4, resumed after epoch 2, {way}: "
        f"{len(model.trainable_weights)} of 10 tensors are trainable; the end is "
        f"{max(abs(a - b).max() for a, b in pairs):.3g} from the whole run's"
    )


def two_processes():
    print("6 two processes: not run here")


def head_carries_over():
    model = build()
    before = state(model)
    fit(model)
    alone = state(model)
    unfreeze(model)
    model.compile(keras.optimizers.SGD(RATE), "mse")
    print(
        f"7 the head moved by {moved(before, alone, 'head'):.3g} before the unfreeze, by "
        f"{moved(alone, state(model), 'head'):.3g} at it"
    )


SITUATIONS = {
    "1": frozen_layers, "2": frozen_layers, "3": unfrozen_layers, "4": schedules, "5": resume,
    "6": two_processes, "7": head_carries_over,
}  # fmt: skip

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"keras {keras.__version__}, {keras.backend.backend()} {tf.__version__}")
    for run in dict.fromkeys(SITUATIONS[number] for number in sys.argv[1:] or SITUATIONS):
        run()
