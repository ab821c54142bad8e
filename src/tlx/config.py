"""From a command line to the typed settings of a run: the only code that touches Hydra's objects.

Nothing here imports torch, so that `--help` and a mistyped key answer at once.
"""

import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from tlx.errors import UserError, unknown
from tlx.models.catalog import BACKBONES, family_of
from tlx.specs import (
    AugmentSpec,
    BackboneSpec,
    CacheSpec,
    Config,
    DataSpec,
    HeadSpec,
    OptimizerSpec,
    PreprocessSpec,
    StageSpec,
    TrainerSpec,
)

T = TypeVar("T")


POSITIVE = {
    "data.batch_size", "data.image_size", "trainer.accumulate", "trainer.clip", "trainer.num_nodes",
    "trainer.devices", "data.per_class", "tta", "trainer.checkpoint_steps", "trainer.limit_epochs",
    "trainer.limit_train", "trainer.limit_eval", "cache.views", "cache.max_bytes",
    "data.decode_cache_bytes",
}  # fmt: skip


def parse(raw: Mapping[str, Any]) -> Config:
    """The validated settings of a composed configuration (plain dicts, as Hydra resolved them)."""
    top = {k: v for k, v in raw.items() if k not in ("experiment", "resume")}
    valid = {f.name for f in fields(Config)} - {"stages"} | {"stage", "optimizer", "scheduler"}
    for key in top:
        if key not in valid:
            raise unknown("key", key, sorted(valid))
    if missing := sorted(valid - top.keys()):
        raise UserError(f"{missing[0]} is not given; was this saved by another version of tlx?")
    hints = typing.get_type_hints(Config)
    groups = {"backbone", "head", "preprocess", "data", "augment", "cache", "trainer", "stages"}
    plain = {k: top[k] for k in hints if k not in groups}
    config = Config(
        backbone=_typed(BackboneSpec, top["backbone"], "backbone"),
        head=_typed(HeadSpec, top["head"], "head"),
        stages=_stages(top["stage"], top["optimizer"], top["scheduler"]),
        preprocess=_typed(PreprocessSpec, top["preprocess"], "preprocess"),
        data=_typed(DataSpec, top["data"], "data"),
        augment=_typed(AugmentSpec, top["augment"], "augment"),
        cache=_typed(CacheSpec, top["cache"], "cache"),
        trainer=_typed(TrainerSpec, top["trainer"], "trainer"),
        **{k: _checked(v, hints[k], k) for k, v in plain.items()},
    )
    family_of(config.backbone.name)  # raises for a name that is none
    if config.seed < 0:
        raise UserError(f"seed={config.seed} is negative; give 0 or more.")
    if (config.data.num_workers or 0) < 0:
        raise UserError(f"data.num_workers={config.data.num_workers} is negative; give 0 or more.")
    return config


def _stages(
    stages: Mapping[str, Any], optimizer: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> tuple[StageSpec, ...]:
    if not stages:
        raise UserError("no stage to train; choose stage=head, finetune, gradual, full or scratch.")
    specs = []
    for name, settings in stages.items():
        key = f"stage.{name}"
        if not isinstance(settings, Mapping):
            raise UserError(f"{key}={settings!r} is no stage; it takes settings such as epochs=5.")
        own = {**_stage_defaults(), **settings}
        lr = _checked(own.pop("lr", None), float | Literal["find"] | None, f"{key}.lr")
        own["find_lr"] = lr == "find"
        if not isinstance(lr, float):
            scale = _checked(own.pop("lr_scale", 1.0), float, f"{key}.lr_scale")
            lr = _checked(optimizer.get("lr"), float, "optimizer.lr") * scale
        if lr <= 0:
            raise UserError(f"{key}: a learning rate of {lr:g}; it must be above 0.")
        own.pop("lr_scale", None)
        if "lr" in (own.get("optimizer") or {}):
            raise UserError(f"{key}.optimizer.lr: write {key}.lr={own['optimizer']['lr']} instead.")
        own["optimizer"] = _optimizer(own.get("optimizer") or optimizer, lr, key)
        own["scheduler"] = own.get("scheduler") or scheduler
        spec = _typed(StageSpec, {"name": name, **own}, key)
        if spec.patience is not None and spec.patience < 1:
            raise UserError(f"{key}.patience={spec.patience}: 1 epoch or more, or null.")
        if spec.epochs < 1:
            raise UserError(f"{key}.epochs={spec.epochs}: a stage trains for 1 epoch or more.")
        _check_rates(spec, key)
        if spec.batchnorm_momentum is not None and not 0 < spec.batchnorm_momentum <= 1:
            raise UserError(
                f"{key}.batchnorm_momentum={spec.batchnorm_momentum:g} is not above 0 and at most "
                "1; for statistics that stand still use batchnorm=frozen."
            )
        specs.append(spec)
    return tuple(specs)


def _stage_defaults() -> dict[str, Any]:
    """For a stage that was added on the command line: `+stage.NAME={train_from: …, epochs: …}`."""
    from omegaconf import OmegaConf

    node = OmegaConf.load(conf_dir() / "stage" / "settings" / "default.yaml")
    settings = typing.cast(dict[str, Any], OmegaConf.to_container(node))
    return {key: value for key, value in settings.items() if value != "???"}


def _check_rates(spec: StageSpec, key: str) -> None:
    if not 0 < spec.lr_decay <= 1:
        raise UserError(f"{key}.lr_decay={spec.lr_decay:g}: it must be above 0 and at most 1.")
    if spec.l2_sp is not None and not 0 <= spec.l2_sp < math.inf:
        raise UserError(f"{key}.l2_sp={spec.l2_sp:g}: a strength of 0 or more, such as 0.01.")
    if spec.ema is not None and not 0 < spec.ema < 1:
        raise UserError(f"{key}.ema={spec.ema:g}: a decay between 0 and 1, such as 0.999.")


def _optimizer(settings: Mapping[str, Any], lr: float, key: str) -> OptimizerSpec:
    target = settings.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{key}: the optimizer needs _target_, a class such as torch.optim.AdamW.")
    rest = {name: value for name, value in settings.items() if name not in ("_target_", "lr")}
    return OptimizerSpec(target=target, lr=lr, settings=rest)


def _typed(cls: type[T], values: Any, key: str) -> T:
    """`values` as the dataclass: every key known, every field given, every value of its type."""
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise unknown("key", f"{key}.{name}", [f"{key}.{n}" for n in hints])
    required = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
    if missing := sorted(required - values.keys()):
        raise UserError(
            f"{key}.{missing[0]} is not given; was this saved by another version of tlx?"
        )
    return cls(**{n: _checked(v, hints[n], f"{key}.{n}") for n, v in values.items()})


def _checked(value: Any, hint: Any, key: str) -> Any:
    """`value` when it is of the annotated type; numbers in YAML such as 1e-3 are read as such."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for option in options:
        ok, converted = _as(value, option)
        if ok:
            if key in POSITIVE and isinstance(converted, (int, float)) and converted <= 0:
                raise UserError(f"{key}={value} must be above 0.")
            return converted
    wanted = " or ".join(_spell(option) for option in options)
    raise UserError(f"{key}={value!r} is not valid; it takes {wanted}.")


def _as(value: Any, option: Any) -> tuple[bool, Any]:  # noqa: PLR0911
    origin = typing.get_origin(option)
    if origin is Literal:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        return text in typing.get_args(option), text
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False, None
        items = [_as(item, typing.get_args(option)[0]) for item in value]
        return all(ok for ok, _ in items), tuple(item for _, item in items)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping), value
    if option is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return True, float(value)
        except ValueError:
            return False, None
    if option is str and isinstance(value, int) and not isinstance(value, bool):
        return True, str(value)
    if option is int and isinstance(value, bool):
        return False, None
    return isinstance(value, option), value


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def _spell(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return " | ".join(str(a) for a in typing.get_args(option))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if typing.get_origin(option) is not None and issubclass(typing.get_origin(option), Mapping):
        return "{NAME: VALUE}"
    return "null" if option is type(None) else names.get(option, "a list of numbers")


# ---- Hydra ----


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or at the top of the checkout."""
    here = Path(__file__).resolve().parent
    return here / "conf" if (here / "conf").is_dir() else here.parents[1] / "conf"


def help_text() -> str:
    """Train's help, without Hydra's search for plugins and choices, which takes seconds."""
    from omegaconf import OmegaConf

    return str(OmegaConf.load(conf_dir() / "train.yaml").hydra.help.template)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose `overrides` (train's command line) into plain dicts, without starting a run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    _register_backbones()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), _readable_errors():
        return _plain(hydra_compose("train", [_quoted(override) for override in overrides]))


def run_hydra(job: Callable[[dict[str, Any], Path, bool], Any]) -> None:
    """Run `job(raw config, run folder, is one trial of a sweep)` as Hydra's application."""
    import os
    import sys

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    def task(node: Any) -> Any:
        settings = HydraConfig.get()
        return job(
            _plain(node), Path(settings.runtime.output_dir), settings.mode == RunMode.MULTIRUN
        )

    _register_backbones()
    sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
    _name_trials_by_what_differs()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole; we print them
    with _readable_errors():
        hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(task)()


PATHS = (
    "data.root", "data.table", "data.exclude", "backbone.weights", "cache.dir", "hydra.run.dir",
    "hydra.sweep.dir",
)  # fmt: skip


def _quoted(argument: str) -> str:
    """Regular expressions, and paths with characters that Hydra reads otherwise, as they are."""
    import os

    key, _, value = argument.partition("=")
    if value in ("", "null") or value[0] in "'\"":
        return argument
    if key in PATHS:  # the shell leaves the ~ of KEY=~/… alone
        value = os.path.expanduser(value)
        argument = f"{key}={value}"
    is_odd = re.search(r"[^\w /\\.+:@%*?|=$-]", value, re.ASCII)
    is_path = key in PATHS and is_odd and not re.search(r",|\$\{", value)  # no sweep, no reference
    if not (key == "data.group" or is_path):
        return argument
    escaped = value.replace("'", r"\'")
    return f"{key}='{escaped}'"


def _name_trials_by_what_differs() -> None:
    """Of a sweep's settings, those that all trials share stay out of the folders' names."""
    import sys

    arguments = sys.argv[1:]
    if {"-m", "--multirun"} & set(arguments):
        pairs = [a.lstrip("+").partition("=") for a in arguments if "=" in a]
        shared = sorted({key for key, _, value in pairs if not re.search(r"[,(]", value)})
        name = "hydra.job.config.override_dirname.exclude_keys"
        sys.argv.append(f"{name}=[{','.join(shared)}]")


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
    return typing.cast(dict[str, Any], raw)


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
    text = str(error)
    if found := re.search(r"Could not override '([\w.@/-]+)'", text):
        key, near = found[1], _nearby_keys(found[1])
        if key in near:  # as in stage=head stage.top.epochs=3
            group = key.split(".")[0]
            return UserError(
                f"{key} is not a key of this {group}; leave it out, or choose another."
            )
        return unknown("key", key, near)
    if found := re.search(r"Could not find '([\w]+)/([\w.-]+)'", text):
        group, name = found[1], found[2]
        names = {p.stem for p in (conf_dir() / group).glob("*.yaml")}
        return unknown(group, name, sorted(names | set(BACKBONES if group == "backbone" else ())))
    return UserError(text.split("\nfull_key", maxsplit=1)[0].strip())


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
    siblings = [k for k in keys if k.count(".") == key.count(".")]
    parent = key.rpartition(".")[0]
    return [k for k in siblings if k.rpartition(".")[0] == parent] or siblings


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
    """Whether a sweep made it; its folder may lie deeper where a path is swept over."""
    return any((parent / "multirun.yaml").is_file() for parent in run.resolve().parents)


def resumed(arguments: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The saved configuration and folder of `resume=RUN`; other keys that change it are refused."""
    pairs = dict(argument.partition("=")[::2] for argument in arguments)
    run = Path(pairs.pop("resume"))
    raw = saved_config(run)
    if refused := sorted(set(pairs) - set(FREE_ON_RESUME)):
        raise UserError(
            f"resume={run} goes on with the saved configuration; these would change its result: "
            f"{', '.join(refused)}. Only {', '.join(FREE_ON_RESUME)} can be set."
        )
    return override(raw, pairs), run


def override(raw: dict[str, Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """`raw` with KEY=VALUE pairs set, values read as YAML."""
    from omegaconf import OmegaConf

    node = OmegaConf.create(raw)
    return _plain(
        OmegaConf.merge(node, OmegaConf.from_dotlist([f"{k}={v}" for k, v in pairs.items()]))
    )
