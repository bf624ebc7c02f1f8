"""Momentum PGD for images that shall fool other models than the one that was asked: input
diversity, translation, scale, variance tuning and Nesterov's step, each an option."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from roli_fast import ops
from roli_fast.attacks.base import ATTACKS, Ball
from roli_fast.attacks.passes import Passes, Samples, column
from roli_fast.attacks.pgd import PGD, accumulated
from roli_fast.errors import ArgumentError, check_choice, describe


@ATTACKS.register("transfer")
@dataclass(frozen=True)
class Transfer(PGD):
    """A step costs scales * (1 + neighbours) forwards and as many input-backwards.

    The default is MI-DI-FGSM from a random start. Resizing and smoothing need images (B, C, H, W);
    others pass by both. The other fields are those of `PGD`.

    Args:
        momentum: decay of the accumulated gradient (MI-FGSM, Dong et al., CVPR 2018).
        diversity: probability that a pass sees an image scaled down and padded with zeros at a
            random place (DI-FGSM, Xie et al., CVPR 2019, arXiv:1803.06978).
        resize: least side of a scaled image, as a share of the whole, in (0, 1].
        kernel: odd width in pixels, 15 in the paper, of the Gaussian, three sigma to a side, that
            smooths gradients; 0 for none (TI-FGSM, Dong et al., CVPR 2019, arXiv:1904.02884).
        scales: passes an iterate, over x, x/2, x/4 ... (SI-FGSM, Lin et al., ICLR 2020,
            arXiv:1908.06281).
        nesterov: gradients are taken where momentum leads (NI-FGSM, ibid.).
        neighbours: points around an iterate, 20 in the paper, whose gradients tune the next step
            (VMI-FGSM, Wang and He, CVPR 2021, arXiv:2103.15571).
        width: how far away they are, in multiples of eps.
    """

    keep: Literal["last"] = "last"  # pyright: ignore - a transformed pass tells no iterate's loss
    momentum: float = 1.0
    diversity: float = 0.5
    resize: float = 0.9
    kernel: int = 0
    scales: int = 1
    nesterov: bool = False
    neighbours: int = 0
    width: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("keep", self.keep, ("last",))
        for name, low in (("scales", 1), ("neighbours", 0), ("kernel", 0)):
            if getattr(self, name) < low:
                raise ArgumentError(describe(name, f"an integer >= {low}", getattr(self, name)))
        if self.kernel and self.kernel % 2 == 0:
            raise ArgumentError(describe("kernel", "an odd number of pixels, or 0", self.kernel))
        for name in ("diversity", "resize"):
            if not 0 <= getattr(self, name) <= 1 or name == "resize" and self.resize == 0:
                raise ArgumentError(describe(name, "a share in [0, 1]", getattr(self, name)))

    @property
    def label(self) -> str:
        """ "transfer-10"; what else differs from the default follows, "ti15-si5-ni-vt5" say."""
        _pgd, *words = super().label.replace(f"-m{self.momentum:g}", "").split("-")
        own = {
            f"m{self.momentum:g}": self.momentum != 1,
            f"di{self.diversity:g}": self.diversity != 0.5,
        }
        own |= {f"ti{self.kernel}": self.kernel, f"si{self.scales}": self.scales > 1}
        own |= {"ni": self.nesterov, f"vt{self.neighbours}": self.neighbours}
        return "-".join(["transfer", *words, *(name for name, used in own.items() if used)])

    def _climb(
        self, passes: Passes, samples: Samples, ball: Ball, generator: Generator | None
    ) -> tuple[Tensor, None]:
        x_adv = self._start(samples, ball, generator)
        size = self.step_size if self.step_size is not None else samples.eps / 4
        velocity = variance = None
        for _ in range(self.steps):
            at = x_adv
            if self.nesterov and velocity is not None:
                length = column(size, x_adv) if isinstance(size, Tensor) else size
                at = x_adv + self.momentum * length * _ahead(velocity, ball)
            grad = self._gradient(passes, at, samples, generator)
            if self.neighbours:
                tuned = grad if variance is None else grad + variance
                variance = self._around(passes, x_adv, samples, ball, generator) - grad
                grad = tuned
            if self.kernel:
                grad = smoothed(grad, self.kernel)
            if self.momentum:
                grad = velocity = accumulated(velocity, grad, self.momentum)
            self._step(x_adv, grad, samples, ball)
        return x_adv, None

    def _around(
        self,
        passes: Passes,
        x_adv: Tensor,
        samples: Samples,
        ball: Ball,
        generator: Generator | None,
    ) -> Tensor:
        """The mean gradient of random neighbours, which may lie outside the bounds."""
        total = torch.zeros_like(x_adv)
        whole = 2.0**14  # more than any bounds, and a number of every dtype
        for _ in range(self.neighbours):
            near = ball.norm.random_start(
                x_adv,
                eps=samples.eps * self.width,
                bounds=(-whole, whole),
                generator=generator,
                sample_ids=samples.ids,
            )
            total = total + self._gradient(passes, near, samples, generator)
        return total / self.neighbours

    def _gradient(
        self, passes: Passes, x: Tensor, samples: Samples, generator: Generator | None
    ) -> Tensor:
        """The mean gradient over all scales, through what each pass makes of the images."""
        total = torch.zeros_like(x)
        for scale in range(self.scales):
            if scale == 0 and not self.diversity:
                total = total + passes.gradient(x, samples.goal)[0]
                continue
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x.clone().requires_grad_(True)
                seen = leaf / 2**scale
                if self.diversity and x.ndim == 4:
                    draws = uniform(len(x), 4, samples.ids, generator, x)
                    seen = diverse(seen, draws, self.diversity, self.resize)
            grad = passes.gradient(seen.detach(), samples.goal)[0]
            with torch.inference_mode(False):
                total = total + torch.autograd.grad(seen, leaf, grad.clone())[0]
        return total / self.scales


def _ahead(velocity: Tensor, ball: Ball) -> Tensor:
    """`velocity` in steps: in linf with a mean entry of 1 for every gradient in it, as the authors'
    code has it, else of the norm's length 1."""
    if ball.norm.order == math.inf:
        return velocity * velocity[0].numel() if len(velocity) else velocity
    length = ball.norm.distance(velocity, torch.zeros_like(velocity)).to(velocity.dtype)
    return velocity / column(length.clamp(min=torch.finfo(velocity.dtype).tiny), velocity)


def uniform(
    batch: int, count: int, ids: Tensor, generator: Generator | None, like: Tensor
) -> Tensor:
    """float32 (B, count) in (0, 1), by the generator's next number and the samples' ids."""
    zeros = torch.zeros(batch, count, device=like.device)
    signed = ops.linf_random_start(
        zeros, eps=1.0, bounds=(-1.0, 1.0), generator=generator, sample_ids=ids
    )
    return (signed + 1) / 2


def diverse(x: Tensor, draws: Tensor, probability: float, least: float) -> Tensor:
    """Images (B, C, H, W) of which some are scaled down, bilinearly, and padded with zeros.

    Args:
        x: the images.
        draws: (B, 4) in (0, 1): whether, to which size, and where from the top and from the left.
        probability: of each image to be scaled.
        least: smallest share of height and width; the largest size is a pixel below the whole.
    """
    height, width = x.shape[-2:]
    chosen = draws[:, 0] < probability
    share = torch.where(chosen, least + (1 - least) * draws[:, 1], torch.ones_like(draws[:, 1]))
    rows, in_rows = _placed(height, share, draws[:, 2])
    columns, in_columns = _placed(width, share, draws[:, 3])
    places = columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)
    grid = torch.stack(places, -1)
    with torch.autocast(x.device.type, enabled=False):
        found = functional.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    mask = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    moved = torch.where(mask, found, torch.zeros_like(found)).to(x.dtype)
    return torch.where(column(chosen, x), moved, x)


def _placed(whole: int, share: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel of an axis (B, whole): where `grid_sample` looks for it, -1 to 1 being an axis
    scaled to `share` (B,), which begins at `place` (B,) of the room that is left; and whether it is
    in it."""
    side = (share * whole).floor().clamp(min=1)
    first = (place * (whole - side + 1)).floor().clamp(max=whole - 1)
    at = torch.arange(whole, device=share.device) + 0.5 - first[:, None]
    return 2 * at / side[:, None] - 1, (at > 0) & (at < side[:, None])


def smoothed(grad: Tensor, width: int) -> Tensor:
    """Gradients (B, C, H, W) convolved with a Gaussian of `width` pixels, zeros around; others as
    they are."""
    if grad.ndim != 4:
        return grad
    at = torch.linspace(-3, 3, width, device=grad.device)
    bell = torch.exp(-at.square() / 2)
    bell = (bell / bell.sum()).to(torch.promote_types(grad.dtype, torch.float32))
    wide, channels = grad.to(bell.dtype), grad.shape[1]
    for shape in ((1, 1, width, 1), (1, 1, 1, width)):
        kernel = bell.view(shape).expand(channels, -1, -1, -1)
        with torch.autocast(grad.device.type, enabled=False):
            wide = functional.conv2d(wide, kernel, padding="same", groups=channels)
    return wide.to(grad.dtype)
