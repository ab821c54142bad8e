from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from tlx.composition import compose, conf_dir
from tlx.data.augment import Augment, apply, crop_box, sample_key
from tlx.data.datamodule import ImageData
from tlx.data.datasets import FeatureDataset, ImageDataset
from tlx.data.images import Decoding
from tlx.data.manifest import Manifest, Sample
from tlx.data.parallel import in_threads
from tlx.data.targets import TargetPolicy, train_targets
from tlx.errors import UserError

CLASSES = ("blue", "green", "red")
SHAKE = {"horizontal_flip": True, "rotation_range": 20.0, "zoom_range": (0.8, 1.2)}


def preprocess(image: Image.Image | Tensor, box: tuple[int, int, int, int] | None) -> Tensor:
    pixels = image if isinstance(image, Tensor) else TF.pil_to_tensor(image)
    if box is not None:
        pixels = pixels[:, box[1] : box[3], box[0] : box[2]]
    return TF.resize(pixels, [16, 16], antialias=True)


@pytest.fixture
def samples(image_folder: Path) -> list[Sample]:
    paths = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.*"))
    return [Sample(path, path.partition("/")[0], "train", "", "") for path in paths]


@pytest.fixture
def make(image_folder: Path, samples: list[Sample]):
    def dataset(mixed: bool = True, **augment: object) -> ImageDataset:
        return ImageDataset(
            [image_folder / sample.path for sample in samples],
            train_targets(samples, CLASSES, TargetPolicy(), mixed=mixed),
            preprocess,
            augment=Augment(**augment),
            keys=[sample_key(sample.path) for sample in samples],
            seed=7,
        )

    return dataset


def test_without_augmentation_the_view_does_not_matter(image_folder: Path) -> None:
    dataset = ImageDataset([image_folder / "red" / "1.png"], [2], preprocess)
    assert torch.equal(dataset[0, 0][0], dataset[0, 9][0])
    assert dataset[0, 9][1:] == (2, 0)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_an_image_is_mixed_with_another_under_that_ones_augmentation(make, samples, kind) -> None:
    dataset, alone = make(**{kind: 1.0}, **SHAKE), make(**SHAKE)
    partners = set()
    for index, view in [(0, 0), (0, 1), (9, 0), (9, 3)]:
        image, target, position = dataset[index, view]
        mix = Augment(**{kind: 1.0}).draw(7, view, sample_key(samples[index].path)).mix
        partner = int(mix.partner * 24)
        partners.add(partner)
        own, other = alone[index, view][0].double(), alone[partner, view][0].double()
        if kind == "mixup":
            expected = mix.lam * own + (1 - mix.lam) * other
            assert (image.double() - expected).abs().max() <= 0.5001
        else:
            assert ((image == own) | (image == other)).all()
            assert (image == own).all(0).double().mean() == pytest.approx(mix.lam, abs=0.13)
        shares = torch.zeros(3)
        shares[CLASSES.index(samples[index].label)] += mix.lam
        shares[CLASSES.index(samples[partner].label)] += 1 - mix.lam
        torch.testing.assert_close(target, shares)
        assert position == index
    assert len(partners) == 4


def test_any_image_can_be_the_partner(make) -> None:
    dataset = make(mixup=1.0)
    draws = [dataset._draw(index, view) for index in range(24) for view in range(10)]
    assert {dataset._partner(params.mix) for params in draws} == set(range(24))


@pytest.mark.parametrize("augment", [SHAKE, {**SHAKE, "mixup": 0.4}, {"crop_scale": (0.2, 0.9)}])
def test_threads_make_the_batch_of_single_items(make, augment, set_threads) -> None:
    dataset = make(**augment)
    items = [(index, index % 3) for index in (5, 0, 23, 5, 11, 2, 17)]
    expected = default_collate([dataset[item] for item in items])
    set_threads(3)
    assert all(map(torch.equal, dataset.__getitems__(items), expected))


def test_a_file_that_a_thread_cannot_read_is_named(make, set_threads) -> None:
    dataset = make()
    dataset.files[4] = dataset.files[4].with_name("gone.png")
    set_threads(3)
    with pytest.raises(UserError, match=r"gone\.png.*Restore the file"):
        dataset.__getitems__([(index, 0) for index in range(8)])


@pytest.mark.parametrize("mixed", [True, False])
def test_features_have_the_targets_of_their_images(make, mixed: bool) -> None:
    images = make(mixed, cutmix=float(mixed), **SHAKE)
    views = [torch.arange(24.0)[:, None] + 100 * view for view in range(2)]
    features = FeatureDataset(views, images)
    assert len(features) == 24
    for items in [[(0, 0), (0, 1), (13, 1)], [(5, 1), (2, 1), (5, 1)]]:
        rows, targets, indices = features.__getitems__(items)
        assert rows[:, 0].tolist() == [index + 100 * view for index, view in items]
        _, expected, positions = default_collate([images[item] for item in items])
        assert torch.equal(targets, expected)
        assert (targets.dtype, indices.tolist()) == (expected.dtype, positions.tolist())


def test_a_crop_is_taken_from_the_picture_before_it_is_resized(make, samples, image_folder) -> None:
    dataset = make(False, crop_scale=(0.1, 0.5))
    for index in (0, 11):
        params = dataset._draw(index, 3)
        picture = Image.open(image_folder / samples[index].path)
        box = crop_box(params, *picture.size)
        assert (box[2] - box[0]) * (box[3] - box[1]) < 0.6 * picture.width * picture.height
        expected = apply(preprocess(picture, box)[None], [params])[0]
        assert torch.equal(dataset[index, 3][0], expected)


@pytest.mark.parametrize(("alpha", "shade"), [("white", 255), ("black", 0)])
def test_images_are_decoded_as_the_policy_says(tmp_path: Path, alpha: str, shade: int) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (20, 20)).save(path)
    for view in (0, 1):
        dataset = ImageDataset([path], [0], preprocess, decoding=Decoding(alpha=alpha))
        assert dataset[0, view][0].unique().tolist() == [shade]


AUGMENTS = sorted(path.stem for path in (conf_dir() / "augment").glob("*.yaml"))


@pytest.mark.parametrize("name", [*AUGMENTS, "everything"])
def test_val_and_test_are_never_augmented_nor_smoothed(image_folder, samples, name: str) -> None:
    """Whatever conf/augment has, and all of it at once: items are the plain pictures."""
    if name == "everything":
        settings = {**compose(["augment=none"])["augment"], **SHAKE, "crop_scale": [0.1, 0.5],
                    "policy": "trivialaugment", "erasing": 1.0, "mixup": 1.0, "cutmix": 1.0,
                    "brightness_range": [0.2, 0.3]}  # fmt: skip
    else:
        settings = compose([f"augment={name}"])["augment"]
    places = ["train", "val", "test"] * 8
    samples = [
        Sample(s.path, s.label, place, "", "", weight=1.0 + i, soft='{"red": 1}')
        for i, (s, place) in enumerate(zip(samples, places, strict=True))
    ]
    data = ImageData(
        Manifest.of(image_folder, samples),
        preprocess,
        augment=Augment(**settings),
        batch_size=4,
        num_workers=0,
        seed=0,
        policy=TargetPolicy(label_smoothing=0.2, soft_labels=True, class_weights="balanced"),
        balanced=True,
    )
    for split in ("val", "test"):
        dataset = data.dataset(split)
        assert len(dataset) == 8
        for index, sample in enumerate(data.manifest.split(split)):
            plain = preprocess(Image.open(image_folder / sample.path), None)
            for view in (0, 5):
                image, target, position = dataset[index, view]
                assert torch.equal(image, plain)
                assert (target, position) == (CLASSES.index(sample.label), index)
    changed = [
        not torch.equal(data.dataset("train")[index, 5][0], plain_of(data, index))
        for index in range(8)
    ]
    assert any(changed) == (name != "none")


def plain_of(data: ImageData, index: int) -> Tensor:
    return preprocess(
        Image.open(data.manifest.root / data.manifest.split("train")[index].path), None
    )


def test_soft_training_targets_reach_the_loader(image_folder, samples) -> None:
    samples = [Sample(s.path, s.label, "train", "", "", soft='{"red": 0.25, "blue": 0.75}')
               for s in samples]  # fmt: skip
    data = ImageData(
        Manifest.of(image_folder, samples), preprocess, augment=Augment(), batch_size=6,
        num_workers=0, seed=0, policy=TargetPolicy(soft_labels=True),
    )  # fmt: skip
    targets = torch.cat([batch[1] for batch in data.train_dataloader()])
    assert (targets.dtype, targets.shape) == (torch.float32, (24, 3))
    assert targets.unique(dim=0).tolist() == [[0.75, 0.0, 0.25]]


def test_threads_work_at_once_each_with_one_of_pytorchs(set_threads) -> None:
    set_threads(3)
    everyone = Barrier(3, timeout=30)

    def work(place: int) -> tuple[int, int]:
        everyone.wait()
        return place, torch.get_num_threads()

    assert list(in_threads(work, range(6))) == [(place, 1) for place in range(6)]
    assert torch.get_num_threads() == 3
    found: list[int] = []
    later = Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [3]
    set_threads(1)
    assert isinstance(in_threads(work, ()), map)
