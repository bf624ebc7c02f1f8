"""The prompts of one block."""

from torch import Tensor, nn

from roli_fast.peft.modes import Inserted

NAME = "prompt"
"""The name of the prompts inside their block."""


class Tokens(nn.Module, Inserted):
    """Learned tokens (1, T, D) -> (B, T, D), with dropout in updates.

    Args:
        start: initial values (1, T, D).
        dropout: share of entries that an update sets to zero.
    """

    def __init__(self, start: Tensor, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(start)
        self.dropout = dropout

    def no_weight_decay(self) -> set[str]:
        """Like class tokens and position tables, prompts do not decay."""
        return {"tokens"}

    def forward(self, batch: int) -> Tensor:
        tokens = self.tokens.expand(batch, -1, -1)
        return nn.functional.dropout(tokens, self.dropout, self.training)
