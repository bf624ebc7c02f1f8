"""Grey images for a network of one channel, from the command line to the report."""

from pathlib import Path

import pytest
from small import run_small

from roli_fast.evaluate.__main__ import main as evaluate
from roli_fast.evaluate.report import read_report
from roli_fast.models import load
from roli_fast.train import analysis

FLAGS = ["--data.channels=1", "--model.options.in_chans=1", "--methods=roli"]


def test_train_and_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "SHARE", 1e9)  # the whole analysis, examples among it
    summary = run_small(tmp_path / "run", *FLAGS, "--analysis_images=20", "--report=true")
    model = load(tmp_path / "run/seed-0/roli/stage-2-finetune/best.safetensors")
    assert len(model.card["mean"]) == 1 and model.config.options["in_chans"] == 1
    assert (tmp_path / "run/report.html").is_file()
    assert (tmp_path / "run/seed-0/roli/examples.npz").is_file()
    out = tmp_path / "out"
    flags = ["--model", str(tmp_path / "run/seed-0/roli"), "--attacks=pgd-2", "--images=20"]
    assert evaluate([*flags, "--out", str(out), "--corruptions=fog"]) == 0
    assert summary["methods"] and len(read_report(out).clean) == 20
