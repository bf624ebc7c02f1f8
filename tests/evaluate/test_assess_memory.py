"""An evaluation that does not fit: `--batch_size`, what would fit, and what was found is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_assess import assert_same_flags, assess

from roli_fast.engine import InputGradient
from roli_fast.errors import OutOfMemoryError
from roli_fast.evaluate import worker


class Meter:
    """100 bytes and 10 an image, of what there is."""

    name, tries, held, has = "a small device", 3, 0, 200

    def free(self) -> int:
        return self.has

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.held


def test_a_pass_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of more than 10 images are refused in the second chunk; then there is more."""
    meter, gradient, calls = Meter(), InputGradient._gradient, 0

    def limited(self: Any, x: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        meter.held = 100 + 10 * len(x)
        if calls > 60 and meter.held > meter.has:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient(self, x, *rest)

    assess(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(InputGradient, "_gradient", limited)
        patch.setattr(worker, "meter_of", lambda _device: meter)
        with pytest.raises(OutOfMemoryError) as caught:
            assess(tmp_path / "out")
    assert str(caught.value) == (
        "`--batch_size`: expected a number of images that fit into the memory of a small device, "
        "got 16. About 10 would fit (tried once)."
    )
    assert (tmp_path / "out" / "chunks" / "00001.json").exists()
    assess(tmp_path / "out", resume=True)
    assert_same_flags(tmp_path / "whole", tmp_path / "out")
