"""What a search costs."""

from dataclasses import dataclass, field
from operator import add


@dataclass(frozen=True)
class Cost:
    """Model passes: `forwards`, calls of the model, and `backwards` to the input only.

    A pass that a `SearchModel` splits counts once for each of its batches. These differ in size,
    also because samples that are done may leave, so `forward_images` and `backward_images` count
    the images in all of them: what a search costs however it was split. They take no part in a
    comparison of costs.
    """

    forwards: int
    backwards: int
    forward_images: int = field(default=0, compare=False)
    backward_images: int = field(default=0, compare=False)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(add, vars(self).values(), vars(other).values()))
