"""An evaluation that does not fit: `--batch_size` is named, and what was found is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_assess import assert_same_flags, assess

from roli_fast.engine import InputGradient
from roli_fast.errors import OutOfMemoryError


def test_a_pass_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of more than 10 images are refused in the second chunk; then there is more."""
    gradient, calls = InputGradient._gradient, 0

    def limited(self: Any, x: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 60 and len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient(self, x, *rest)

    assess(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(InputGradient, "_gradient", limited)
        with pytest.raises(OutOfMemoryError) as caught:
            assess(tmp_path / "out")
    assert str(caught.value) == (
        "`--batch_size`: expected a number of images that fit into the memory of cpu, "
        "got 16. Lower it."
    )
    assert (tmp_path / "out" / "chunks" / "00001.json").exists()
    assess(tmp_path / "out", resume=True)
    assert_same_flags(tmp_path / "whole", tmp_path / "out")
