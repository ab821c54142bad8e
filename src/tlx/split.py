"""python -m tlx.split: a folder of photographs as train, validation and test folders."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tlx.commands import command, split_arguments
from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError, unknown

if TYPE_CHECKING:
    from tlx.data.manifest import Manifest

HELP = """\
tlx split: train, validation and test folders of class folders, from a folder of photographs.

  python -m tlx.split source=DIR_OR_ARCHIVE output=DIR [mode=copy]

  source=…             class folders, or a zip or tar of them; it is only read
  output=DIR           a new folder, or an empty one; it also gets a manifest.csv
  mode=copy            copy | hardlink | symlink | manifest (no folders, the manifest alone)
  val=0.2 test=0.2     fractions of the images
  seed=0               another seed, another split
  how=stratified       stratified | sequential (in listing order: only to reproduce others' splits)
  group=REGEX          images whose paths have an equal (first) match stay together
  keep_together=near   so do near copies and copies: near | exact | none

Takes train's data settings too: data=csv data.table=FILE, data.on_error=skip, data.folds=5 …
"""
SETTINGS = {
    "source": "root",
    "val": "val",
    "test": "test",
    "how": "split",
    "group": "group",
    "keep_together": "keep_together",
}  # of data=, by our argument
FOLDERS = {"train": "train", "val": "validation", "test": "test"}
MODES = ("copy", "hardlink", "symlink", "manifest")


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    defaults = {"output": "", "mode": "copy"} | dict.fromkeys(SETTINGS, "")
    own, overrides = split_arguments(arguments, defaults)
    if own["mode"] not in MODES:
        raise unknown("mode", own["mode"], MODES)
    if not own["output"]:
        raise UserError("output is not given; add output=DIR to the command.")
    if not any(override.startswith("data=") for override in overrides):
        if not own["source"]:
            raise UserError("source is not given; add source=DIR to the command.")
        overrides = ["data=folder", "data.root=null", *overrides]
    raw = compose(overrides)
    raw["data"].update({SETTINGS[key]: own[key] for key in SETTINGS if own[key]})
    config = parse(raw)
    output = Path(own["output"]).expanduser()
    _check_place(output, own["source"] or config.data.root or "", own["mode"])
    from tlx.data.sources import build_manifest

    manifest = build_manifest(config.data, seed=config.seed)
    write(manifest, output, own["mode"])
    counts = Counter(sample.split for sample in manifest.samples)
    sizes = ", ".join(f"{counts[split]} {FOLDERS[split]}" for split in FOLDERS)
    print(f"{len(manifest.classes)} classes; images: {sizes}")
    print(f"Written to {output}")


def _check_place(output: Path, source: str, mode: str) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"output={output} exists already: give a new folder, or an empty one.")
    if source:
        root = Path(source).expanduser().resolve()
        if output.resolve().is_relative_to(root):
            raise UserError(f"output={output} lies in the source {source}: give a folder outside.")
        if mode == "symlink" and root.is_file():
            raise UserError(f"mode=symlink: {source} is an archive, no folder; take mode=copy.")


def write(manifest: "Manifest", output: Path, mode: str) -> None:
    """All of it or nothing: it becomes `output` once it is complete.

    Raises UserError when two images of a class and split have one name, or writing fails.
    """
    if mode != "manifest":
        written = _as_folders(manifest)
    partial = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        if mode == "manifest":
            manifest.write(partial / "manifest.csv")
        else:
            for sample, new in zip(manifest.samples, written, strict=True):
                place = partial / new
                place.parent.mkdir(parents=True, exist_ok=True)
                PUT[mode]((manifest.root / sample.path).resolve(), place)
            samples = [
                replace(sample, path=new)
                for sample, new in zip(manifest.samples, written, strict=True)
            ]
            type(manifest).of(output, samples).write(partial / "manifest.csv")
        partial.replace(output)
    except OSError as error:
        hint = " (mode=copy works everywhere)" if mode in ("hardlink", "symlink") else ""
        raise UserError(f"cannot write {output}: {error.strerror}{hint}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Path, place: Path) -> None:
    shutil.copyfile(source, place)


def _hardlink(source: Path, place: Path) -> None:
    place.hardlink_to(source)


def _symlink(source: Path, place: Path) -> None:
    place.symlink_to(source)


PUT: dict[str, Callable[[Path, Path], None]] = {
    "copy": _copy,
    "hardlink": _hardlink,
    "symlink": _symlink,
}


def _as_folders(manifest: "Manifest") -> list[str]:
    """Where each image goes: split/class/name."""
    taken: dict[str, str] = {}
    for name in manifest.classes:
        if "/" in name or "\0" in name or name.startswith("."):
            raise UserError(f"the class {name!r} cannot be a folder: rename it, or mode=manifest.")
    for sample in manifest.samples:
        new = Path(FOLDERS[sample.split], sample.label, Path(sample.path).name).as_posix()
        if new in taken:
            raise UserError(
                f"{taken[new]} and {sample.path} would both become {new}: rename one, or take "
                "mode=manifest."
            )
        taken[new] = sample.path
    return list(taken)


if __name__ == "__main__":
    main(sys.argv[1:])
