"""Seeds derived from what a draw is for, so that no RNG state ever has to be stored.

A draw is named by its purpose and its place, `derive_seed("order", seed, epoch)`:
the same name gives the same numbers in any process, batch or order, also after a resume.
"""

import hashlib
import operator

import torch

from roli_fast.errors import ArgumentTypeError, describe


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on `parts` alone: stable over machines and versions.

    The first 63 bits of the BLAKE2b hash of the parts. Each part is hashed with its type and
    length, so ("a", "bc") and ("ab", "c") differ, and so do 1 and "1".

    Args:
        *parts: integers (Python, NumPy or 0-d tensors) and strings, in an order that matters.

    Raises:
        ArgumentTypeError: a part is neither an integer nor a string.
    """
    digest = hashlib.blake2b(b"".join(map(_encode, parts)), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derived_generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A new generator on `device`, seeded with `derive_seed(*parts)`.

    PyTorch's CPU generator uses the low 32 bits of a seed: among n of them, about n * n / 2**33
    pairs coincide (a million streams: 116 pairs), which is harmless for corruptions and order.
    """
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def _encode(part: int | str) -> bytes:
    if isinstance(part, str):
        raw = part.encode("utf-8", "surrogateescape")
        return b"s%d:%b" % (len(raw), raw)
    try:
        return b"i%d;" % operator.index(part)
    except TypeError:
        kind = type(part).__name__
        raise ArgumentTypeError(describe("parts", "integers and strings", kind)) from None
