"""Imports flow one way along the design's chain."""

import ast
from pathlib import Path

import tlx

ROOT = Path(tlx.__file__).parent
# Each part may import from itself and from the parts before it.
CHAIN = [
    "errors",
    "files",
    "models.catalog",
    "models.decision",
    "specs",
    "overrides",
    "composition",
    "config",
    "data",
    "models",
    "training",
    "evaluation",
    "diagnosis",
    "conclusion",
]


def part_of(module: str) -> str | None:
    """The longest name in the chain that the module (without `tlx.`) belongs to."""
    fits = [name for name in CHAIN if module == name or module.startswith(f"{name}.")]
    return max(fits, key=len) if fits else None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    return {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for path in ROOT.rglob("*.py")
        if path.stem != "__init__"
    }


def test_no_part_imports_from_a_later_one():
    assert len(modules()) > 25
    wrong = []
    for name, path in modules().items():
        part = part_of(name)
        for target in imports(path):
            other = part_of(target.removeprefix("tlx.")) if target.startswith("tlx.") else None
            if part and other and CHAIN.index(other) > CHAIN.index(part):
                wrong.append(f"{name} imports {target}")
            if part and target.startswith("tlx.") and other is None and target.count(".") == 1:
                command = target.removeprefix("tlx.")
                if command in modules():
                    wrong.append(f"{name} imports the command {target}")
    assert wrong == []


def test_models_and_data_know_neither_lightning_nor_hydra():
    for name, path in modules().items():
        if name.startswith(("models.", "data.")) and name != "data.datamodule":
            heavy = {i for i in imports(path) if i.startswith(("lightning", "hydra", "omegaconf"))}
            assert heavy == set(), name


def test_only_composition_touches_hydra():
    users = {
        name
        for name, path in modules().items()
        if any(i.split(".")[0] in ("hydra", "omegaconf") for i in imports(path))
    }
    assert users == {"composition"}
