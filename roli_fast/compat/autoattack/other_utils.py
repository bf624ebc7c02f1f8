"""AutoAttack's helpers: its log, distances and check of images."""

import sys
from pathlib import Path

from torch import Tensor

from roli_fast import ops
from roli_fast.compat.peers import our_norm
from roli_fast.norms import NORMS


class Logger:
    """Lines to standard output, and to the end of a file."""

    def __init__(self, log_path: str | Path | None) -> None:
        self.log_path = log_path

    def log(self, str_to_log: str) -> None:
        """One more line."""
        sys.stdout.write(f"{str_to_log}\n")
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as file:
                file.write(f"{str_to_log}\n")


def check_imgs(adv: Tensor, x: Tensor, norm: str) -> str:
    """The largest distance in `norm`, NaNs and range of `adv`, in a line that is logged too."""
    line = (
        f"max {norm} pert: {NORMS[our_norm(norm)].distance(adv, x).max():.5f}, nan in imgs: "
        f"{int(adv.isnan().sum())}, max in imgs: {adv.max():.5f}, min in imgs: {adv.min():.5f}"
    )
    Logger(None).log(line)
    return line


def L0_norm(x: Tensor) -> Tensor:  # noqa: N802 - the original's
    """How many entries of each sample (B,) are not 0."""
    return (x != 0).flatten(1).sum(1)


def L1_norm(x: Tensor, keepdim: bool = False) -> Tensor:  # noqa: N802
    """The l1 norm of each sample (B,), or (B, 1, ...)."""
    return _norm(x, 1, keepdim)


def L2_norm(x: Tensor, keepdim: bool = False) -> Tensor:  # noqa: N802
    """The l2 norm of each sample (B,), or (B, 1, ...)."""
    return _norm(x, 2, keepdim)


def _norm(x: Tensor, order: int, keepdim: bool) -> Tensor:
    return x.norm(p=order, dim=tuple(range(1, x.ndim)), keepdim=keepdim)


def L1_projection(x2: Tensor, y2: Tensor, eps1: float) -> Tensor:  # noqa: N802
    """What to add to x2 + y2 to be in the l1 ball of radius `eps1` around `x2` and in [0, 1]."""
    moved = x2 + y2
    return ops.l1_project_(moved.clone(), x2, eps=eps1, bounds=(0.0, 1.0)) - moved
