import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from torch import Tensor, nn

from tlx.data.augment import Augment, apply, sample_key
from tlx.data.datamodule import ImageData
from tlx.data.datasets import ImageDataset
from tlx.data.loaders import auto_workers, prediction_loader
from tlx.data.manifest import Manifest, Sample
from tlx.data.samplers import EpochSampler
from tlx.data.targets import UNLABELLED
from tlx.errors import UserError

LIGHT = Augment(
    horizontal_flip=True, rotation_range=10, width_shift_range=0.05, zoom_range=(0.9, 1.1)
)


def preprocess(image: Image.Image | Tensor, box: tuple[int, int, int, int] | None = None) -> Tensor:
    pixels = image if isinstance(image, Tensor) else TF.pil_to_tensor(image)
    if box is not None:
        pixels = pixels[:, box[1] : box[3], box[0] : box[2]]
    return TF.resize(pixels, [16, 16], antialias=True)


@pytest.fixture
def manifest(image_folder: Path) -> Manifest:
    """14 train, 5 val and 5 test pictures."""
    held = {"blue": "vvtt", "green": "vvt", "red": "vtt"}
    splits = {"v": "val", "t": "test", "-": "train"}
    samples = [
        Sample(f"{name}/{number}.png", name, splits[letter], "", "")
        for name, letters in held.items()
        for number, letter in enumerate(letters.ljust(8, "-"))
    ]
    return Manifest.of(image_folder, samples)


@pytest.fixture
def make_data(manifest: Manifest) -> Callable[..., ImageData]:
    def make(batch_size: int = 4, num_workers: int = 0, seed: int = 3, **more: Any) -> ImageData:
        settings = {"augment": LIGHT, "batch_size": batch_size, "num_workers": num_workers, **more}
        return ImageData(manifest, preprocess, seed=seed, **settings)

    return make


# Data sets and loaders


def test_train_items_are_augmented_by_view(
    make_data: Callable[..., ImageData], manifest: Manifest
) -> None:
    dataset = make_data(seed=3).dataset("train")
    sample = manifest.split("train")[5]
    plain = preprocess(Image.open(manifest.root / sample.path))
    for view in (0, 4):
        image, target, index = dataset[5, view]
        params = LIGHT.draw(3, view, sample_key(sample.path))
        assert torch.equal(image, apply(plain[None], [params])[0])
        assert (manifest.classes[target], index) == (sample.label, 5)
    assert not torch.equal(dataset[5, 0][0], dataset[5, 4][0])


def test_evaluation_is_never_augmented(
    make_data: Callable[..., ImageData], manifest: Manifest
) -> None:
    data = make_data()
    assert data.dataset("val").augment is None
    assert data.dataset("test").augment is None
    loader = data.val_dataloader()
    images, targets, indices = (torch.cat(part) for part in zip(*loader, strict=True))
    samples = manifest.split("val")
    assert (images.dtype, images.shape) == (torch.uint8, (5, 3, 16, 16))
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert [manifest.classes[target] for target in targets] == [s.label for s in samples]
    for image, sample in zip(images, samples, strict=True):
        assert torch.equal(image, preprocess(Image.open(manifest.root / sample.path)))


def test_classes(make_data: Callable[..., ImageData]) -> None:
    assert make_data().classes == ("blue", "green", "red")


def test_workers_change_nothing_and_leave_the_global_generators_alone(
    make_data: Callable[..., ImageData],
) -> None:
    epochs = {}
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for workers in (0, 2):
        loader = make_data(num_workers=workers).train_dataloader()
        batches = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            batches += list(loader)
        epochs[workers] = batches
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert len(epochs[0]) == len(epochs[2]) == 8
    for alone, shared in zip(epochs[0], epochs[2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_last_batch_of_one_is_dropped(
    make_data: Callable[..., ImageData], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sizes = {
        batch_size: [len(images) for images, _, _ in make_data(batch_size).train_dataloader()]
        for batch_size in (1, 5, 13)
    }
    assert sizes == {1: [1] * 14, 5: [5, 5, 4], 13: [13]}
    assert caplog.text.count("it is dropped") == 1
    assert [len(images) for images, _, _ in make_data(4).val_dataloader()] == [4, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_broke_since_is_named(
    make_data: Callable[..., ImageData], manifest: Manifest, workers: int
) -> None:
    path = manifest.root / manifest.split("train")[2].path
    path.write_bytes(path.read_bytes()[:200])
    loader = make_data(num_workers=workers).train_dataloader()
    with pytest.raises(UserError, match=rf"cannot read the image {path}: .*Restore the file"):
        list(loader)
    if workers:  # left to the garbage collector, torch takes 5 s for each after an error
        loader._iterator._shutdown_workers()


def test_prediction_keeps_the_order_given(image_folder: Path) -> None:
    files = [image_folder / "red" / "1.png", image_folder / "blue" / "0.png"] * 2
    loader = prediction_loader(files, preprocess, batch_size=3, num_workers=0)
    images, targets, indices = (torch.cat(part) for part in zip(*loader, strict=True))
    assert indices.tolist() == [0, 1, 2, 3]
    assert targets.tolist() == [UNLABELLED] * 4
    assert torch.equal(images[0], preprocess(Image.open(files[0])))
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize(
    ("cores", "processes", "cuda", "workers"),
    [
        (2, 1, False, 0),
        (8, 1, False, 2),
        (64, 1, False, 4),
        (2, 1, True, 1),
        (16, 4, True, 3),
        (64, 1, True, 8),
        (1, 2, True, 0),
    ],
)
def test_auto_workers(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, cuda: bool, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert auto_workers(processes) == workers


# Under Lightning


class Recorder(lightning.LightningModule):
    """Notes the epoch, the indices and a fingerprint of the pixels of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.trained: list[tuple[int, list[int], int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        images, targets, indices = batch
        weighted = images.long() * torch.arange(images[0].numel()).reshape(images[0].shape)
        self.trained.append((self.trainer.current_epoch, indices.tolist(), int(weighted.sum())))
        return nn.functional.cross_entropy(self.layer(images.float().mean((2, 3))), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
        self.validated.append(batch[2].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def fit(data: ImageData, epochs: int, resume: Path | None = None, **settings: object) -> Recorder:
    model = Recorder()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(model, data, ckpt_path=resume)
    return model


lightning_warnings = [
    # torch 2.14 deprecates what Lightning 2.6 uses to walk its loaders
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    # Lightning's advice on workers; ours is measured, in auto_workers
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


class TestUnderLightning:
    pytestmark = lightning_warnings

    def test_every_epoch_has_its_own_order(self, make_data: Callable[..., ImageData]) -> None:
        model = fit(make_data(), epochs=3)
        for epoch in range(3):
            sampler = EpochSampler(14, 3)
            sampler.set_epoch(epoch)
            seen = [i for when, batch, _ in model.trained if when == epoch for i in batch]
            assert seen == [index for index, _ in sampler]
        assert model.validated == [[0, 1, 2, 3], [4]] * 3

    def test_a_later_stage_draws_its_own(self, make_data: Callable[..., ImageData]) -> None:
        whole = fit(make_data(), epochs=3)
        data = make_data()
        data.epoch_offset = 2
        stage = fit(data, epochs=1)
        assert [seen[1:] for seen in stage.trained] == [
            seen[1:] for seen in whole.trained if seen[0] == 2
        ]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_resumed_run_goes_on_as_if_never_stopped(
        self, make_data: Callable[..., ImageData], tmp_path: Path, workers: int
    ) -> None:
        whole = fit(make_data(num_workers=workers), epochs=3)
        path = tmp_path / "epoch.ckpt"
        save = LambdaCallback(on_train_epoch_end=lambda trainer, _: trainer.save_checkpoint(path))
        first = fit(make_data(num_workers=workers), epochs=1, callbacks=[save])
        rest = fit(make_data(num_workers=workers), epochs=3, resume=path)
        assert first.trained + rest.trained == whole.trained

    def test_too_few_images_for_the_processes(
        self, make_data: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ImageData, "_process", lambda self: (0, 15))
        with pytest.raises(UserError, match="14 training images are too few for 15 processes"):
            make_data(batch_size=15).train_dataloader()
        with pytest.raises(UserError, match="batch_size=20 cannot be shared by 15 .* such as 30"):
            make_data(batch_size=20).train_dataloader()


def test_a_data_set_without_augmentation_ignores_the_view(image_folder: Path) -> None:
    dataset = ImageDataset([image_folder / "red" / "1.png"], [2], preprocess)
    assert torch.equal(dataset[0, 0][0], dataset[0, 9][0])
