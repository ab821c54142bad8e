"""A command line, or a run's folder, as plain dicts: the only code that touches Hydra's objects.

Nothing here imports torch, so that `--help` and a mistyped key answer at once.
"""

import os
import re
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from tlx.errors import UserError, unknown
from tlx.files import replace_atomically
from tlx.models.catalog import BACKBONES
from tlx.overrides import (
    NAMINGS,
    PART,
    PATHS,
    SWEEPS,
    as_typed,
    in_quotes,
    is_mapping,
    is_misread,
    is_no_choice,
    is_swept,
    mapping,
    several,
    unreadable,
)

# What others call it; with a dot before it, what ends so.
ALIASES = {
    "architecture": ["backbone"], "augmentation": ["augment"], "data_dir": [".root"],
    "data_path": [".root"], "dataset": [".root"], "device": ["trainer"],
    "early_stopping": [".patience"], "freeze": ["stage", ".train_from"], "gpus": [".devices"],
    "img_size": [".image_size"], "input_size": [".image_size"], "learning_rate": [".lr"],
    "max_epochs": [".epochs"], "model": ["backbone"], "n_epochs": [".epochs"],
    "num_epochs": [".epochs"], "output_dir": ["hydra.run.dir"], "pretrained": [".weights"],
    "target_size": [".image_size"], "val_split": [".val"], "valid_pct": [".val"],
    "validation_split": [".val"], "workers": [".num_workers"],
}  # fmt: skip

LONGEST_NAME = 200  # bytes, of a trial's folder; file systems take 255


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or at the top of the checkout."""
    here = Path(__file__).resolve().parent
    return here / "conf" if (here / "conf").is_dir() else here.parents[1] / "conf"


def help_text() -> str:
    """Train's help, without Hydra's search for plugins and choices, which takes seconds."""
    from omegaconf import OmegaConf

    return str(OmegaConf.load(conf_dir() / "train.yaml").hydra.help.template)


def stage_defaults() -> dict[str, Any]:
    """For a stage that was added on the command line: `+stage.NAME={train_from: …, epochs: …}`."""
    from omegaconf import OmegaConf

    node = OmegaConf.load(conf_dir() / "stage" / "settings" / "default.yaml")
    settings = typing.cast(dict[str, Any], OmegaConf.to_container(node))
    return {key: value for key, value in settings.items() if value != "???"}


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose `overrides` (train's command line) into plain dicts, without starting a run."""
    check_form(overrides)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    _register_backbones()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), _readable_errors():
        return _plain(hydra_compose("train", [_quoted(override) for override in overrides]))


def check_form(arguments: Sequence[str]) -> None:
    """Raise for what is no KEY=VALUE, as other tools have it, before Hydra says so in its words."""
    for argument in arguments:
        if "=" in argument or argument.startswith("~"):  # ~key takes a key out
            continue
        if argument.startswith("-"):
            name = argument.lstrip("-")
            raise UserError(f"{argument}: settings are {name}=VALUE, without dashes; see --help.")
        key = "run" if (Path(argument) / ".hydra").is_dir() else "data.root"
        hint = (
            f"; do you mean {shlex.quote(f'{key}={argument}')}?" if Path(argument).exists() else "."
        )
        raise UserError(f"{argument}: settings are KEY=VALUE{hint}")


@dataclass(frozen=True)
class Begun:
    """A run that Hydra begins: one of its own, or one trial of a sweep."""

    folder: Path
    is_trial: bool
    _node: Any

    def config(self) -> dict[str, Any]:
        """As composed. Raises UserError where something is not given."""
        return _plain(self._node)

    def keep(self) -> None:
        """Write what Hydra writes into its run's folder, once that is known to be ours.

        In the configuration nothing is left that only Hydra or this moment can resolve, such as
        ${hydra:runtime.cwd}.
        """
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        settings = HydraConfig.instance().cfg
        files = {
            "config.yaml": OmegaConf.create(self.config()),
            "hydra.yaml": settings,
            "overrides.yaml": HydraConfig.get().overrides.task,
        }
        for name, node in files.items():
            with replace_atomically(self.folder / ".hydra" / name) as temporary:
                OmegaConf.save(node, temporary)


def run_hydra(job: Callable[[Begun], Any]) -> None:
    """Run `job` as Hydra's application."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    def task(node: Any) -> Any:
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        return job(Begun(folder, settings.mode == RunMode.MULTIRUN, node))

    _register_backbones()
    OmegaConf.register_new_resolver("unused", _unused, use_cache=True, replace=True)
    sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
    _name_trials_by_what_differs()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole; we print them
    with _readable_errors():
        hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(task)()


@cache
def _unused(path: str) -> str:
    """Of several runs that are begun in one second, each gets a folder of its own."""
    for name in chain([path], (f"{path}-{number}" for number in count(2))):
        with suppress(FileExistsError):
            os.makedirs(name)
            return name
    raise AssertionError


def _quoted(argument: str) -> str:
    """Regular expressions, paths, names and choices that Hydra reads otherwise, as they are."""
    key, _, value = argument.partition("=")
    is_choice = key.isidentifier() and (conf_dir() / key).is_dir()
    if not value or (value == "null" and not is_choice) or value[0] in "'\"":
        return argument
    if key in (*PATHS, "data"):  # the shell leaves the ~ of KEY=~/… alone
        value = os.path.expanduser(value)
        is_file = os.path.isfile(value) or (os.path.isdir(value) and key == "data.root")
        is_cache = key == "cache.dir" and not re.search(r",|\$\{", value)  # no sweep, no reference
        if (is_file and key in PATHS) or is_cache:  # to be found from other folders too
            value = os.path.abspath(value)
        argument = f"{key}={value}"
    if key == "data.group" or (key == "data" and os.path.exists(value)):
        return f"{key}={in_quotes(value)}"
    if "${" in value or SWEEPS.match(value):
        return argument
    if is_choice:
        to_quote = is_no_choice
    elif key in (*PATHS, "positive"):
        to_quote = is_misread
    elif key in NAMINGS and not _keeps_names(argument):
        to_quote = is_mapping
    else:
        return argument
    quoted = re.sub(PART, lambda m: in_quotes(m[0].strip()) if to_quote(m[0]) else m[0], value)
    return f"{key}={quoted}"


def _keeps_names(argument: str) -> bool:
    """Whether Hydra reads the mapping, and its names as texts."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(argument).value()
    except HydraException:
        return False
    if not isinstance(value, dict):
        return True
    names = [*value, *value.values()] if argument.startswith("data.columns") else value
    return all(isinstance(name, str) for name in names)


def _name_trials_by_what_differs() -> None:
    """Of a sweep's settings, those that all trials share stay out of the folders' names.

    Where too much differs for a name, or paths do, the folders are numbered alone. Flags go first:
    argparse, which Hydra uses, takes none between settings.
    """
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    others = [argument for argument in sys.argv[1:] if argument not in flags]
    sys.argv[1:] = [*flags, *others]
    if flags:
        pairs = [a.lstrip("+").partition("=") for a in others if "=" in a]
        swept = [(key, value) for key, _, value in pairs if is_swept(value)]
        shared = sorted({key for key, _, _ in pairs} - {key for key, _ in swept})
        name = "hydra.job.config.override_dirname.exclude_keys"
        sys.argv.append(f"{name}=[{','.join(shared)}]")
        length = sum(len(key) + 2 for key, _ in swept)
        length += sum(max(len(v.encode()) for v in value.split(",")) for _, value in swept)
        is_path = any(re.search(r"[/\\]", value) for _, value in swept)
        is_given = any(argument.startswith("hydra.sweep.subdir=") for argument in others)
        if (length > LONGEST_NAME or is_path) and not is_given:
            sys.argv.append("hydra.sweep.subdir=${hydra.job.num}")


def _plain(node: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    try:
        raw = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).split(":")[-1].strip()
        hint = OmegaConf.select(node, "data.hint") if key == "data.root" else None
        text = f"{key} is not given; add {key}=… to the command. {hint or ''}"
        raise UserError(text.strip()) from None
    raw = typing.cast(dict[str, Any], raw)
    for key in NAMINGS:
        group, name = key.split(".")
        given = (raw.get(group) or {}).get(name)
        if isinstance(given, str) and given.startswith("{"):  # see _quoted
            raw[group][name] = mapping(key, given)
    return raw


def _register_backbones() -> None:
    """Make every torchvision network that has no file of its own a choice `backbone=NAME`."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    files = {path.stem for path in (conf_dir() / "backbone").glob("*.yaml")}
    for name in sorted(set(BACKBONES) - files):
        store.store(name, {"name": name, "weights": "imagenet"}, group="backbone")


class _readable_errors:  # noqa: N801
    """Turn Hydra's and OmegaConf's errors into a UserError with the nearest valid names."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, (HydraException, OmegaConfBaseException)):
            raise _explain(error) from None


def _explain(error: BaseException) -> UserError:
    from hydra.errors import OverrideParseException

    text = str(error)
    if found := re.search(r"Could not override '([\w.@/-]+)'", text):
        return _no_such_key(found[1])
    if found := re.search(r"Could not (?:find|load) '(\w+)/(.*?)'\.?(\n|$)", text):
        return _no_such_choice(found[1], found[2])
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        is_key = re.fullmatch(r"[\w+~./@:$-]+", key, re.ASCII)
        return unreadable(error.override, error.message) if is_key else _no_such_key(key)
    if found := re.search(r"interpolation: \[Errno \d+\] (.+): '(.+)'", text):  # see _unused
        return UserError(
            f"{found[2]} cannot be made: {found[1]}; choose another hydra.run.dir=DIR."
        )
    if found := re.search(r"^(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        return several(found[1])
    return UserError(text.split("\nfull_key", maxsplit=1)[0].strip())


def _no_such_choice(group: str, name: str) -> UserError:
    if group == "data" and name and Path(name).exists():
        is_table = Path(name).suffix in (".csv", ".tsv")
        fix = (
            ["data=csv", f"data.table={name}"] if is_table else ["data=folder", f"data.root={name}"]
        )
        kind = "folder" if Path(name).is_dir() else "file"
        return UserError(f"data={name} is a {kind}: {shlex.join(fix)}")
    if group == "data" and re.search(r"[/\\]", name):
        return UserError(f"data={name}: no such folder. One is given by data=folder data.root=DIR")
    if group == "experiment" and is_no_choice(name):
        return UserError(f"experiment={name}: leave it out for none.")
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
    return unknown(group, name, sorted(names | set(BACKBONES if group == "backbone" else ())))


def _no_such_key(key: str) -> UserError:
    near = _nearby_keys(key)
    if key in near:  # as in stage=head stage.top.epochs=3
        group = key.split(".", maxsplit=1)[0]
        return UserError(f"{key} is not a key of this {group}; leave it out, or choose another.")
    parent, _, name = key.rpartition(".")
    likely = _ending_in(key, near)
    for meant in ALIASES.get(name, ()):
        likely += _nearby_keys(meant[1:]) if meant[0] == "." else [meant]
    if likely:
        return UserError(f"unknown key {key!r}. Do you mean {' or '.join(likely)}?")
    if near and parent not in NAMINGS:
        return unknown("key", key, near)
    if parent not in (above := _nearby_keys(parent)):
        return unknown("key", parent, above)
    if name == "lr":
        return UserError(f"{key}: write {parent.removesuffix('optimizer')}lr=… instead.")
    # a stage's own optimizer or scheduler, or one of NAMINGS, which is null
    return UserError(
        f"{key}: {parent} has no settings that could be changed; give all of its own: "
        f"'{parent}={{{name}: …}}'."
    )


def _nearby_keys(key: str) -> list[str]:
    """Every key of the default configuration with as many parts as `key`, or its first parts."""
    from hydra.core.global_hydra import GlobalHydra

    keys: list[str] = []

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            keys.append(prefix + name)
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{name}.")

    GlobalHydra.instance().clear()  # the composition that failed is over
    walk(compose(["data=elpv"]), "")
    if "." not in key and key not in keys and (deeper := _ending_in(key, keys)):
        return deeper
    siblings = [k for k in keys if k.count(".") == key.count(".")]
    parent = key.rpartition(".")[0]
    return [k for k in siblings if k.rpartition(".")[0] == parent] or siblings


def _ending_in(name: str, keys: Sequence[str]) -> list[str]:
    """As in epochs=3: what is so called below."""
    return [key for key in keys if key.rpartition(".")[2] == name]


# ---- Runs ----

FREE_ON_RESUME = ("data.num_workers", "data.root", "test", "report", "verbosity")


def saved_config(run: Path) -> dict[str, Any]:
    """The composed configuration that a run's folder holds."""
    from omegaconf import OmegaConf

    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is no run's folder: it has no .hydra/config.yaml.")
    return _plain(OmegaConf.load(path))


def is_trial(run: Path) -> bool:
    """Whether a sweep made it."""
    from omegaconf import OmegaConf

    path = run / ".hydra" / "hydra.yaml"
    return path.is_file() and OmegaConf.select(OmegaConf.load(path), "hydra.mode") == "MULTIRUN"


def resumed(arguments: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The saved configuration and folder of `resume=RUN`; other keys that change it are refused."""
    pairs = dict(argument.partition("=")[::2] for argument in arguments)
    run = Path(pairs.pop("resume")).expanduser()
    raw = saved_config(run)
    if refused := sorted(set(pairs) - set(FREE_ON_RESUME)):
        raise UserError(
            f"resume={run} goes on with the saved configuration; these would change its result: "
            f"{', '.join(refused)}. Only {', '.join(FREE_ON_RESUME)} can be set."
        )
    return override(raw, pairs), run


def override(raw: dict[str, Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """`raw` with KEY=VALUE pairs set, values read as YAML but for paths."""
    from omegaconf import OmegaConf

    read = [f"{key}={value}" for key, value in pairs.items() if key not in PATHS]
    result = _plain(OmegaConf.merge(OmegaConf.create(raw), OmegaConf.from_dotlist(read)))
    for key in pairs.keys() & set(PATHS):
        group, name = key.split(".")
        result[group][name] = None if pairs[key] == "null" else as_typed(pairs[key])
    return result
