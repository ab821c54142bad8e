"""Keras's ImageDataGenerator: its pictures recorded for tests/data/test_keras_parity.py; its speed.

pip install keras scipy elpv-dataset && export KERAS_BACKEND=torch OMP_NUM_THREADS=1
python benchmarks/keras_parity.py record tests/data/recorded/keras_parity.npz
python benchmarks/keras_parity.py speed     # the processor's time, medians of 200
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elpv_dataset
import numpy as np
import torch
from PIL import Image

from tlx.data.augment import Augment, apply

RECIPE = {
    "rotation_range": 40, "width_shift_range": 0.2, "height_shift_range": 0.2, "shear_range": 0.2,
    "zoom_range": 0.2, "horizontal_flip": True, "fill_mode": "nearest",
}  # fmt: skip
ALL = {
    "rotation_range": 40, "width_shift_range": 0.2, "height_shift_range": 0.15, "shear_range": 20,
    "zoom_range": [0.7, 1.4], "horizontal_flip": True, "vertical_flip": True,
    "brightness_range": [0.6, 1.4], "channel_shift_range": 40.0,
}  # fmt: skip
OUTWARD = {"rotation_range": 90, "width_shift_range": 0.3, "zoom_range": [1.3, 3.5]}
MODES = ("nearest", "constant", "reflect", "wrap")
CASES: list[dict[str, Any]] = [
    *({name: value} for name, value in ALL.items()),
    *({**OUTWARD, "fill_mode": mode, "cval": 90} for mode in MODES),
    *({**ALL, "fill_mode": mode, "cval": 90} for mode in MODES),
]
DRAWN = (
    "theta", "tx", "ty", "shear", "zx", "zy",
    "flip_horizontal", "flip_vertical", "channel_shift_intensity", "brightness",
)  # fmt: skip
NUMBERS = range(1, 2621, 131)  # 20 of the photographs


def elpv(number: int) -> Image.Image:
    folder = Path(elpv_dataset.__file__).parent / "data" / "images"
    return Image.open(folder / f"cell{number:04d}.png").convert("RGB")


def record(file: Path) -> None:
    """Of each picture the pixels where the lattice's rows and columns cross, one channel."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    lattice = np.linspace(0, 299, 26).round().astype(int)
    drawn, values = [], []
    for case, settings in enumerate(CASES):
        generator = ImageDataGenerator(**settings)
        for index, number in enumerate(NUMBERS):
            image = np.asarray(elpv(number), dtype=np.float32)
            params = generator.get_random_transform(image.shape, seed=100 * case + index)
            drawn.append([np.nan if params[name] is None else params[name] for name in DRAWN])
            moved = generator.apply_transform(image, params)[..., 0]
            values.append(moved[np.ix_(lattice, lattice)].round().astype(np.uint8))
    np.savez_compressed(
        file,
        numbers=np.array(NUMBERS),
        lattice=lattice,
        fill_mode=np.array([settings.get("fill_mode", "nearest") for settings in CASES]),
        names=np.array(["+".join(settings) for settings in CASES]),
        drawn=np.array(drawn).reshape(len(CASES), len(NUMBERS), len(DRAWN)),
        values=np.array(values).reshape(len(CASES), len(NUMBERS), *[len(lattice)] * 2),
    )


def speed() -> None:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator
    from torchvision import transforms

    picture = elpv(1).resize((150, 150))
    floats = np.asarray(picture, dtype=np.float32)
    pixels = transforms.functional.pil_to_tensor(picture)
    augment, keras = Augment(**RECIPE), ImageDataGenerator(**RECIPE)
    torchvision = transforms.Compose(
        [
            transforms.RandomAffine(
                40,
                translate=(0.2, 0.2),
                scale=(0.8, 1.2),
                shear=0.2,
                interpolation=transforms.InterpolationMode.BILINEAR,
            ),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    contestants: dict[str, Callable[[int], object]] = {
        "tlx": lambda view: apply(pixels[None], [augment.draw(0, view, 0)])[0],
        "torchvision on PIL": lambda view: torchvision(picture),
        "keras": lambda view: keras.random_transform(floats),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for view in range(200):  # in turns, so that all meet the same load
        for name, run in contestants.items():
            start = time.process_time()
            run(view)
            times[name].append(1000 * (time.process_time() - start))
    for name, taken in times.items():
        print(f"{name:20} {statistics.median(taken):7.3f} ms an image of 150 pixels")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]))
    else:
        speed()
