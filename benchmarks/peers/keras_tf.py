"""Keras 3 on TensorFlow: a frozen VGG16 with a head, then block5; the guide's transfer learning.

The images come from image_dataset_from_directory, are kept decoded (cache) and augmented by
preprocessing layers in the input pipeline while the network trains (prefetch).
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import math
import time

import common
import keras
import tensorflow as tf
from keras import layers
from safetensors.numpy import load_file

CONVOLUTIONS = {
    "block1_conv1": 0, "block1_conv2": 2, "block2_conv1": 5, "block2_conv2": 7,
    "block3_conv1": 10, "block3_conv2": 12, "block3_conv3": 14, "block4_conv1": 17,
    "block4_conv2": 19, "block4_conv3": 21, "block5_conv1": 24, "block5_conv2": 26,
    "block5_conv3": 28,
}  # fmt: skip


SHEAR = math.tan(math.radians(0.2))  # ImageDataGenerator's shear_range counts degrees


class Watch(keras.callbacks.Callback):
    def __init__(self, clock, phase):
        super().__init__()
        self.clock, self.phase = clock, phase

    def on_epoch_begin(self, epoch, logs=None):
        self.clock.epoch(self.phase)

    def on_train_batch_end(self, batch, logs=None):
        self.clock.step(self.phase)

    def on_test_begin(self, logs=None):
        self.started = time.perf_counter()

    def on_test_end(self, logs=None):
        self.clock.val.append(time.perf_counter() - self.started)


def datasets(data, seed):
    read = {"image_size": (common.SIZE, common.SIZE), "label_mode": "binary", "seed": seed}
    train = keras.utils.image_dataset_from_directory(data / "train", batch_size=None, **read)
    val = keras.utils.image_dataset_from_directory(
        data / "val", batch_size=common.BATCH, shuffle=False, **read
    )
    augment = keras.Sequential([
        layers.RandomRotation(40 / 360, fill_mode="nearest"),
        layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
        layers.RandomShear(SHEAR, 0.0, fill_mode="nearest"),
        layers.RandomZoom(0.2, 0.2, fill_mode="nearest"),
        layers.RandomFlip("horizontal_and_vertical"),
    ])  # fmt: skip
    train = (
        train.cache().shuffle(2000, seed=seed).repeat().batch(common.BATCH)
        .map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )  # fmt: skip
    return train, val.cache().prefetch(tf.data.AUTOTUNE)


def network(weights):
    base = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=(common.SIZE, common.SIZE, 3)
    )
    stored = load_file(weights)
    for name, number in CONVOLUTIONS.items():
        kernel = stored[f"features.{number}.weight"].transpose(2, 3, 1, 0)
        base.get_layer(name).set_weights([kernel, stored[f"features.{number}.bias"]])
    variance = [std**2 for std in common.STD]
    inputs = keras.Input((common.SIZE, common.SIZE, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = base(layers.Normalization(mean=common.MEAN, variance=variance)(x), training=False)
    x = layers.Dense(common.HIDDEN, "relu")(layers.Flatten()(x))
    outputs = layers.Dense(1)(layers.Dropout(common.DROPOUT)(x))
    return base, keras.Model(inputs, outputs)


def main():
    args, clock = common.arguments(), common.Clock()
    keras.utils.set_random_seed(args.seed)
    train, val = datasets(args.data, args.seed)
    base, model = network(args.weights)
    history = None
    phases = [
        ("head", args.head_epochs, common.HEAD_RATE),
        ("top", args.top_epochs, common.TOP_RATE),
    ]
    for phase, epochs, rate in phases:
        base.trainable = phase == "top"
        for layer in base.layers:
            learns = args.everything or layer.name.startswith("block5")
            layer.trainable = phase == "top" and learns
        model.compile(
            keras.optimizers.RMSprop(rate, rho=common.RHO, epsilon=common.EPSILON),
            keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)],
        )
        history = model.fit(
            train, epochs=epochs, steps_per_epoch=args.steps, validation_data=val, verbose=0,
            callbacks=[Watch(clock, phase)],
        )  # fmt: skip
    images = len(list((args.data / "val").glob("*/*")))
    clock.report(round(history.history["val_accuracy"][-1] * images), images)


if __name__ == "__main__":
    main()
