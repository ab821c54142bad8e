"""What Keras does before, at and after an unfreeze, on tiny random data.

    pip install keras==3.15.1 tensorflow-cpu==2.21.0
    python benchmarks/unfreezing/keras_model.py

Each line is one measured fact; docs/unfreezing.md has them side by side with other tools'.
"""

import logging
import tempfile
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


def build(*, guide=True, dropout=0.0):
    """A frozen base of two blocks, "pretrained", and a head.

    `guide`: the base is called with training=False, as Keras's guide to transfer learning does.
    """
    keras.utils.set_random_seed(0)
    base_inputs = x = keras.Input((16, 16, 3))
    for _ in range(2):
        x = layers.Conv2D(8, 3, strides=2)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.Dropout(dropout)(layers.ReLU()(x))
    base = keras.Model(base_inputs, x, name="base")
    for images in PRETRAINING:
        base(images, training=True)
    base.trainable = False
    inputs = keras.Input((16, 16, 3))
    x = base(inputs, training=False) if guide else base(inputs)
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    model.features = keras.Model(inputs, x)  # what the head is given
    return model


def fit(model, epochs=1, *, optimizer=None, compiles=True, shuffle=False, **settings):
    if compiles:
        model.compile(
            optimizer or keras.optimizers.SGD(RATE, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    keras.utils.set_random_seed(1)
    model.fit(IMAGES, LABELS, batch_size=8, epochs=epochs, shuffle=shuffle, verbose=0, **settings)


def state(model):
    return {weight.path: np.array(weight) for weight in model.weights}


def moved(before, after, part=""):
    return max(abs(before[n] - after[n]).max() for n in before if part in n)


def mode_gap(model):
    outputs = [model.features(IMAGES[:8], training=training) for training in (True, False)]
    return float(abs(np.array(outputs[0]) - np.array(outputs[1])).max())


def unfreeze(model):
    model.get_layer("base").trainable = True


def frozen_layers():
    for guide in (True, False):
        way = "base(x, training=False)" if guide else "base(x)"
        model = build(guide=guide)
        before = state(model)
        fit(model)
        after = state(model)
        print(
            f"1 frozen, {way}: BatchNorm's moving_mean moved by "
            f"{moved(before, after, 'moving_mean'):.3g}, its gamma by "
            f"{moved(before, after, 'gamma'):.3g}, convolutions by "
            f"{moved(before, after, 'conv2d'):.3g}"
        )
        print(
            f"2 frozen, {way}: train and eval output differ by {mode_gap(model):.3g}, with dropout "
            f"in the base by {mode_gap(build(guide=guide, dropout=0.5)):.3g}"
        )
        unfreeze(model)
        fit(model)
        print(
            f"1, 2 then unfrozen, {way}: moving_mean moved by "
            f"{moved(after, state(model), 'moving_mean'):.3g}, train and eval output differ by "
            f"{mode_gap(model):.3g}"
        )


def unfrozen_layers():
    for compiles in (True, False):
        model = build()
        fit(model)
        unfreeze(model)
        before = state(model)
        fit(model, compiles=compiles)
        after, learns = state(model), [weight.path for weight in model.trainable_weights]
        still = [n for n in learns if np.array_equal(before[n], after[n])]
        print(
            f"3 after the unfreeze, {'' if compiles else 'not '}compiled again: "
            f"{len(learns)} tensors are trainable; of these did not move: {len(still)}"
        )


def schedules():
    rates = keras.optimizers.schedules
    ways = {
        "ExponentialDecay": lambda: rates.ExponentialDecay(RATE, 8, 0.9),
        "CosineDecay": lambda: rates.CosineDecay(RATE, 16),
        "CosineDecayRestarts": lambda: rates.CosineDecayRestarts(RATE, 8),
    }
    for name, rate in ways.items():
        model = build()
        fit(model, optimizer=keras.optimizers.SGD(rate()))
        unfreeze(model)
        optimizer = keras.optimizers.SGD(rate())
        fit(model, optimizer=optimizer)
        print(f"4 {name}, compiled again with a new optimizer: runs, from step 0 on")
    model = build()
    optimizer = keras.optimizers.SGD(rates.CosineDecay(RATE, 16))
    fit(model, optimizer=optimizer)
    unfreeze(model)
    try:
        fit(model, optimizer=optimizer)
        print("4 compiled again with the same optimizer: runs")
    except Exception as error:  # whatever it is, it is the finding
        print(f"4 compiled again with the same optimizer: {type(error).__name__}: {error}"[:160])


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def resume(folder):
    for kind, dropout in (("no randomness", 0.0), ("dropout and shuffling", 0.5)):
        settings = {"epochs": 3, "shuffle": dropout > 0}
        # with training=False the base's dropout is off, so that there would be no randomness
        model = build(guide=dropout == 0, dropout=dropout)
        fit(model)
        model.save_weights(folder / "head.weights.h5")
        unfreeze(model)
        each = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
        fit(model, **settings, callbacks=[each])
        whole = list(state(model).values())

        loaded = keras.models.load_model(folder / "1.keras")
        fit(loaded, **settings, compiles=False, initial_epoch=1)
        report(f"load_model, {kind}", loaded, whole)

        for unfreezes in (True, False):
            backup = folder / f"backup{dropout}{unfreezes}"
            crashing = build(guide=dropout == 0, dropout=dropout)
            crashing.load_weights(folder / "head.weights.h5")
            unfreeze(crashing)
            try:
                callbacks = [keras.callbacks.BackupAndRestore(backup), Crash()]
                fit(crashing, **settings, callbacks=callbacks)
            except KeyboardInterrupt:
                pass
            again = build(guide=dropout == 0, dropout=dropout)
            if unfreezes:
                unfreeze(again)
            way = f"BackupAndRestore, {'' if unfreezes else 'not '}unfrozen by hand, {kind}"
            try:
                fit(again, **settings, callbacks=[keras.callbacks.BackupAndRestore(backup)])
                report(way, again, whole)
            except Exception as error:  # whatever it is, it is the finding
                print(f"5 {way}: {type(error).__name__}: {error}".splitlines()[0][:160])


def report(way, model, whole):
    apart = max(abs(a - b).max() for a, b in zip(whole, state(model).values(), strict=True))
    print(
        f"5 unfrozen after epoch 1 of 4, resumed after epoch 2, {way}: "
        f"{len(model.trainable_weights)} of 10 tensors are trainable; the end is {apart:.3g} "
        "from the whole run's"
    )


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


if __name__ == "__main__":
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"keras {keras.__version__}, {keras.backend.backend()} {tf.__version__}")
    frozen_layers()
    unfrozen_layers()
    schedules()
    with tempfile.TemporaryDirectory() as temporary:
        resume(Path(temporary))
    print("6 two processes: not run")
    head_carries_over()
