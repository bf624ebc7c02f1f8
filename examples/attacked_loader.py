"""Attacked images for a training loop that is not yours to change."""

from collections.abc import Iterator

import roli_fast


class AttackedLoader:
    """A loader whose images are attacked; the loop around it stays as it is."""

    def __init__(self, loader, model, attack: roli_fast.attacks.Attack) -> None:
        self.loader, self.model, self.attack = loader, model, attack

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        for x, y in self.loader:
            yield self.attack(self.model, x, y), y
