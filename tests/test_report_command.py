"""python -m tlx.report."""

import pytest

from tlx import report


def test_help_and_mistakes_are_quick(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(["--help"])
    assert stop.value.code == 0
    assert "python -m tlx.report run=RUN" in capsys.readouterr().out
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra/config.yaml").touch()
    for arguments, said in (
        ([], "run is not given"),
        ([f"run={tmp_path}"], "is no run's folder"),
        ([f"run={tmp_path}", "gradcam=maybe"], "unknown gradcam 'maybe'"),
        ([f"run={run}", "data.root=/nowhere"], "no such folder: /nowhere (data.root)"),
        ([f"run={tmp_path}", "grad=true"], "unknown argument 'grad'"),
    ):
        with pytest.raises(SystemExit) as stop:
            report.main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
