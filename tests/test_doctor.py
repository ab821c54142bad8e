"""The command: tables, JSON, exit codes, and what it says of what is not there."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tlx import doctor, train
from tlx.diagnosis import before
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import CAUSES, Finding, carry_out, ranked
from tlx.errors import UserError

SMALL = [
    "backbone=squeezenet1_1", "backbone.weights=null", "data=folder", "data.image_size=24",
    "data.batch_size=8", "data.num_workers=0", "data.keep_together=none", "trainer=cpu",
    "quick=true",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    code: Any = 0
    try:
        doctor.main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    return code, output.out, output.err


def plant(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    """In place of all checks, one that finds these."""

    def planted(case: Case) -> Iterator[Finding]:
        yield from findings

    monkeypatch.setattr(before, "CHEAP", (planted,))
    monkeypatch.setattr(before, "FULL", ())


NOTE = Finding("few_images", "note", "18 test images", "collect more")
WARNING = Finding("batchnorm", "warning", "2 images at a time", "data.batch_size=32", {"images": 2})
ERROR = Finding("softmax", "error", "head.layers.[1] is a Softmax", "head.activation=relu")


@pytest.mark.parametrize(("findings", "code"), [([NOTE, WARNING], 0), ([NOTE, ERROR], 1)])
def test_only_an_error_is_exit_code_1(
    findings: list[Finding], code: int, image_folder: Path, monkeypatch, capsys
) -> None:
    plant(monkeypatch, *findings)
    assert run(capsys, *SMALL, f"data.root={image_folder}")[0] == code


def test_the_table_fits_80_columns_and_is_ranked(image_folder, monkeypatch, capsys) -> None:
    plant(monkeypatch, NOTE, WARNING, ERROR)
    monkeypatch.setenv("COLUMNS", "80")
    _, shown, _ = run(capsys, *SMALL, f"data.root={image_folder}")
    assert max(map(len, shown.splitlines())) <= 80
    places = [shown.index(text) for text in ("Softmax", "2 images at a time", "18 test images")]
    assert places == sorted(places)
    assert f"{CAUSES['softmax']}: head.layers.[1] is a" in shown
    assert "→ head.activation=relu" in shown
    assert "docs/doctor.md#softmax" in shown
    assert "Examined: planted." in shown


def test_json_on_the_screen_and_in_a_file(image_folder, monkeypatch, capsys, tmp_path) -> None:
    plant(monkeypatch, WARNING)
    output = tmp_path / "found.json"
    arguments = [*SMALL, f"data.root={image_folder}", "format=json", f"output={output}"]
    _, shown, _ = run(capsys, *arguments)
    assert json.loads(shown) == json.loads(output.read_text("utf-8"))
    assert json.loads(shown) == {
        "findings": [
            {
                "cause": "batchnorm", "title": "BatchNorm adapts to tiny batches",
                "severity": "warning", "evidence": "2 images at a time",
                "numbers": {"images": 2}, "fix": "data.batch_size=32",
                "page": "docs/doctor.md#batchnorm", "picture": None,
            }
        ],
        "examined": ["planted"],
        "not_examined": [],
    }  # fmt: skip


def test_the_real_checks_on_a_small_folder(image_folder, capsys) -> None:
    """No check breaks off, and what is found of 24 coloured pictures is that they are few."""
    code, shown, _ = run(capsys, *SMALL, f"data.root={image_folder}", "format=json")
    found = json.loads(shown)
    assert found["not_examined"] == []
    assert len(found["examined"]) == len(before.CHEAP)
    assert "few_images" in {finding["cause"] for finding in found["findings"]}
    assert code == 0


def test_quick_leaves_the_long_checks_out(image_folder, monkeypatch, capsys) -> None:
    def cheap(case: Case) -> Iterator[Finding]:
        yield from ()

    def long(case: Case) -> Iterator[Finding]:
        yield from ()

    monkeypatch.setattr(before, "CHEAP", (cheap,))
    monkeypatch.setattr(before, "FULL", (long,))
    arguments = [*SMALL[:-1], f"data.root={image_folder}", "format=json"]
    assert json.loads(run(capsys, *arguments)[1])["examined"] == ["cheap", "long"]
    assert json.loads(run(capsys, *arguments, "quick=true")[1])["examined"] == ["cheap"]


def test_a_check_that_fails_does_not_end_the_others() -> None:
    def broken(case: int) -> Iterator[Finding]:
        raise ZeroDivisionError("by zero")
        yield

    def too_large(case: int) -> Iterator[Finding]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        yield

    def without_data(case: int) -> Iterator[Finding]:
        yield NOTE
        raise UserError("there is no test split")

    def whole(case: int) -> Iterator[Finding]:
        yield ERROR

    found = carry_out((broken, too_large, without_data, whole), 0)
    assert found.findings == (ERROR, NOTE)
    assert found.examined == ("whole",)
    assert [(n.what, n.why) for n in found.not_examined] == [
        ("broken", "ZeroDivisionError: by zero"),
        ("too large", "there is not enough memory; quick=true needs less"),
        ("without data", "there is no test split"),
    ]


def test_ranked_puts_causes_before_symptoms() -> None:
    mismatch = Finding("input_mismatch", "error", "", "")
    blind = Finding("one_class", "error", "", "")
    assert ranked([NOTE, blind, WARNING, mismatch]) == [mismatch, blind, WARNING, NOTE]


def test_examining_changes_neither_network_nor_random_numbers(image_folder, tmp_path) -> None:
    from tlx.composition import compose
    from tlx.config import parse
    from tlx.training.job import prepare

    job = prepare(parse(compose([*SMALL[:-1], f"data.root={image_folder}"])), tmp_path)
    state = {k: v.clone() for k, v in job.model.classifier.state_dict().items()}
    modes = [m.training for m in job.model.classifier.modules()]
    learns = [p.requires_grad for p in job.model.classifier.parameters()]
    random = torch.random.get_rng_state()
    before.examine(Case(job))
    assert torch.equal(torch.random.get_rng_state(), random)
    after = job.model.classifier.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert modes == [m.training for m in job.model.classifier.modules()]
    assert learns == [p.requires_grad for p in job.model.classifier.parameters()]


# ---- what train would refuse ----


def test_what_train_refuses_the_doctor_finds(image_folder, capsys, tmp_path) -> None:
    """A wrong input, a hidden softmax, copies across splits: findings here, in train the end."""
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1().state_dict()
    save_file({k: v + 1e-3 for k, v in state.items()}, tmp_path / "weights.safetensors")
    images = tmp_path / "split"
    for split in ("train", "val", "test"):
        shutil.copytree(image_folder, images / split)
    arguments = [
        *SMALL, f"data.root={images}", f"backbone.weights={tmp_path / 'weights.safetensors'}",
        "preprocess.input=unit", "head.hidden=[8]", "head.activation=softmax", "format=json",
    ]  # fmt: skip
    code, shown, error = run(capsys, *arguments)
    assert error == ""
    findings = json.loads(shown)["findings"]
    errors = [finding["cause"] for finding in findings if finding["severity"] == "error"]
    assert list(dict.fromkeys(errors)) == ["input_mismatch", "leak", "softmax"]
    assert code == 1


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=xml"], "format=xml is not valid; it takes table | json"),
        (["quick=1"], "quick=1 is not valid; it takes true | false"),
        (["output=nowhere/found.json"], "give a file in a folder that exists"),
        (["backbone=vgg17"], "unknown backbone 'vgg17'"),
        (["data.rooot=x"], "Did you mean data.root"),
        (["data=folder", "data.root=/nowhere"], "data.root=/nowhere: no such folder"),
        (["run=/nowhere"], "run=/nowhere is no run's folder"),
        (["run="], "is no run's folder"),
        (["data.root=."], "a folder of class folders is data=folder"),
        (["resume=outputs/a"], "to examine a run, run=outputs/a"),
        (["run=/nowhere", "optimizer.lr=1"], "unknown argument 'optimizer.lr'"),
        (["run=/nowhere", "data.root=/none"], "run=/nowhere is no run's folder"),
        (["cache=on", "trainer.limit_train=1", "data.root=."], "cache=on: stage head cannot be"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys) -> None:
    code, shown, error = run(capsys, *arguments)
    assert code == 2
    assert message in error
    assert shown == ""


def test_help(capsys) -> None:
    code, shown, _ = run(capsys, "--help")
    assert code == 0
    assert "python -m tlx.doctor run=RUN" in shown


# ---- runs ----


@pytest.fixture
def crashed(image_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    """Ends in its first stage, after train's own examination."""
    monkeypatch.setattr("tlx.training.run.train_stages", lambda job: 1 / 0)
    folder = tmp_path / "run"
    arguments = [*SMALL[:-1], f"data.root={image_folder}", f"hydra.run.dir={folder}"]
    monkeypatch.setattr("sys.argv", ["tlx.train", *arguments])
    with pytest.raises(ZeroDivisionError):
        train.main(arguments)
    return folder


def test_a_crashed_run_is_examined_as_far_as_it_goes(crashed: Path, capsys) -> None:
    code, shown, _ = run(capsys, f"run={crashed}", "format=json")
    found = json.loads(shown)
    assert (code, found["findings"]) == (0, [])
    missing = {n["what"]: n["why"] for n in found["not_examined"]}
    assert "no TensorBoard events" in missing["losses"]
    assert "the run did not reach its end" in missing["few images"]
    _, shown, _ = run(capsys, f"run={crashed}")
    assert "Nothing found." in shown
    assert "Could not be examined: losses: " in shown


def test_train_examines_the_cheap_part_itself(crashed: Path) -> None:
    found = json.loads((crashed / "findings.json").read_text("utf-8"))
    assert set(found) == {"findings", "doctor"}
    told = {finding["cause"]: finding for finding in found["doctor"]}
    assert set(told) <= set(CAUSES)
    assert told["few_images"]["page"] == "docs/doctor.md#few-images"


def test_train_logs_what_is_above_a_note(image_folder, tmp_path, monkeypatch, caplog) -> None:
    plant(monkeypatch, NOTE, WARNING, ERROR)
    monkeypatch.setattr("tlx.training.run.train_stages", lambda job: 1 / 0)
    arguments = [*SMALL[:-1], f"data.root={image_folder}", f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", ["tlx.train", *arguments])
    with pytest.raises(ZeroDivisionError):
        train.main(arguments)
    log = (tmp_path / "run" / "train.log").read_text("utf-8")
    assert "softmax: head.layers.[1] is a Softmax (head.activation=relu)" in log
    assert "batchnorm: 2 images at a time (data.batch_size=32)" in log
    assert "18 test images" not in log


# ---- documentation ----


def test_every_cause_has_its_section() -> None:
    page = Path(__file__).parents[1] / "docs" / "doctor.md"
    headings = [
        line.removeprefix("## ").strip()
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("## ")
    ]
    anchors = {f"docs/doctor.md#{heading.lower().replace(' ', '-')}" for heading in headings}
    assert {Finding(cause, "note", "", "").page for cause in CAUSES} <= anchors
