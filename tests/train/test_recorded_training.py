"""Training whose attacks are replayed ends with the weights of training without: bit for bit."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cpu_recorder import recording
from small import assert_same_weights, run_small

from roli_fast.engine import graph, low_precision

RANLI = ["--methods=ranli", "--ranli.epochs=2", "--ranli.batch_size=24"]
FLAGS = {
    "lora": [*RANLI, "--ranli.tuning=lora"],
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
    passes, run_pass = Counter[Any](), graph.Replays.run

    def counted(self: Any, work: Any, x: Any, y: Any, loss: Any, check: Any) -> Any:
        passes[self._model, self._engine, work.__name__, x.shape, x.stride()] += 1
        return run_pass(self, work, x, y, loss, check)

    monkeypatch.setattr(graph.Replays, "run", counted)
    with recording(monkeypatch) as recorder:
        run_small(tmp_path / "recorded", *flags)
    assert_same_weights(tmp_path / "plain", tmp_path / "recorded")
    records = sum(line.startswith("record") for line in recorder.log)
    # a shape that comes often is recorded at one of its passes, and replayed in those after it
    often = [count - graph.RECORD_AT for count in passes.values() if count >= graph.RECORD_AT]
    assert (records, len(recorder.log) - records) == (len(often), sum(often)) and sum(often) >= 4
