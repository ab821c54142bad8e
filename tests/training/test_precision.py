"""bfloat16 is chosen by what the processor does, and chosen once for a run."""

import json
import threading

import pytest
import torch

from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError
from tlx.files import write_json
from tlx.models.winograd import best_grid
from tlx.training import devices, precision


@pytest.fixture
def spec():
    return parse(compose(["trainer=cpu"])).trainer


@pytest.mark.parametrize(
    ("flags", "speedup", "chosen"),
    [
        ({"avx2", "fma"}, 9.0, "32"), (set(), 9.0, "32"), ({"avx512_bf16"}, 2.0, "bf16-mixed"),
        ({"amx_bf16"}, 1.1, "32"), ({"bf16"}, 0.5, "32"),
    ],
)  # fmt: skip
def test_bf16_needs_the_instructions_and_has_to_be_faster(
    monkeypatch, caplog, spec, *, flags, speedup, chosen
):
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    monkeypatch.setattr(
        precision, "rate", lambda dtype: 1e11 * (speedup if dtype == torch.bfloat16 else 1)
    )
    with caplog.at_level("INFO"):
        assert devices.choose_precision(spec) == chosen
    told = "no bfloat16 instructions" if flags <= {"avx2", "fma"} else "at 100 in float32"
    assert f"Precision {chosen}: " in caplog.text
    assert told in caplog.text


def test_a_resumed_run_computes_as_it_began(monkeypatch, tmp_path, spec):
    for fast in (True, False):
        monkeypatch.setattr(devices, "bf16_on_cpu", lambda fast=fast: (fast, "as tried"))
        assert devices.choose_precision(spec, tmp_path) == "bf16-mixed"
    kept = json.loads((tmp_path / "precision.json").read_text())
    assert kept == {"precision": "bf16-mixed", "reason": "as tried"}
    assert devices.choose_precision(spec) == "32"  # another run's


def test_other_processes_wait_for_what_the_first_one_measures(monkeypatch, tmp_path, spec):
    monkeypatch.setattr(devices.rank_zero_only, "rank", 1)
    monkeypatch.setattr(devices, "bf16_on_cpu", lambda: (True, "as this process finds"))
    first = {"precision": "32", "reason": "as the first one found"}
    timer = threading.Timer(0.3, write_json, [tmp_path / "precision.json", first])
    timer.start()
    assert devices.choose_precision(spec, tmp_path) == "32"
    timer.join()
    monkeypatch.setattr(devices, "PATIENCE", 0.0)
    assert devices.choose_precision(spec, tmp_path / "other") == "bf16-mixed"
    assert not (tmp_path / "other").exists()


def test_the_rate_counts_the_convolutions_arithmetic(monkeypatch):
    """Forward: 2 operations a multiplication, 512 × 512 × 9 weights, 8 × 14 × 14 places."""
    monkeypatch.setattr(precision, "fastest", lambda work: 0.5)
    assert precision.rate(torch.float32) == 3 * 2 * 512 * 512 * 9 * 8 * 14 * 14 / 0.5
    for dtype in (torch.float32, torch.bfloat16):  # compared as training computes
        assert best_grid((8, 512, 14, 14), (512, 512), 1, dtype, back=True) is not None


def test_compiling_without_a_compiler_is_refused_before_work(monkeypatch):
    compiled = parse(compose(["trainer=cpu", "trainer.compile=true"])).trainer
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C.. compiler, and no-such-compiler is not there"):
        devices.check_devices(compiled)
