"""Training whose attacks are replayed ends with the weights of training without: bit for bit."""

from pathlib import Path

import pytest
from cpu_recorder import recording
from small import assert_same_weights, run_small

from roli_fast.engine import low_precision

RANLI = ["--methods=ranli", "--ranli.epochs=2", "--ranli.batch_size=24"]
FLAGS = {
    "full": RANLI,
    "lora": [*RANLI, "--ranli.tuning=lora"],
    "prompt": [*RANLI, "--ranli.tuning=prompt"],
    "bf16": [*RANLI, "--ranli.engine.dtype=bfloat16", "--ranli.engine.attention=fused"],
    "two stages": ["--methods=roli", "--probe.batch_size=24", "--finetune.batch_size=24"],
}
"""Attention named: recordings are a GPU's, which takes the fused kernel."""


@pytest.mark.parametrize("kind", FLAGS)
def test_the_same_weights(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a CPU's own ways in bf16 are none that the player records: GPUs, which record, have none
    monkeypatch.setattr(low_precision, "can_pack", lambda: False)
    flags = FLAGS[kind]
    run_small(tmp_path / "plain", *flags)
    with recording(monkeypatch) as recorder:
        run_small(tmp_path / "recorded", *flags)
    assert_same_weights(tmp_path / "plain", tmp_path / "recorded")
    records = [line for line in recorder.log if line.startswith("record")]
    replays = len(recorder.log) - len(records)
    # a stage's updates, and the shapes of validation and test
    assert 1 <= len(records) <= 8 and replays >= 4
