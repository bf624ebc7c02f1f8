"""What a disk or an editor does to a file, drawn at random."""

import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**9, 10**30, 10**400, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", [], {}, [[]], [None], {"x": 1}, [1] * 7, "1" * 50),
)
"""Put in the place of a field. JSON writes NaN and Infinity as Python does."""

TEXTS = (b"", b"\0", b"\xff\xfe{", b"[]", b"3", b"null", b'"x"', b"{}", b"[" * 100_000)
TEXTS += (b'{"a": ' * 100_000, b"1" * 5_000, b"\xef\xbb\xbf{}")


def change(data: bytes, name: str, draw: random.Random) -> bytes:
    """A file's bytes, damaged in one of a few ways."""
    way = draw.choice(("field",) * 4 + ("gone", "cut", "flip", "text"))
    if way == "field" and name.endswith((".json", ".jsonl")):
        first, *rest = data.decode().splitlines() if name.endswith("l") else [data.decode()]
        return "\n".join([json.dumps(changed(json.loads(first), draw)), *rest, ""]).encode()
    if way == "field" and name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        card = head.get("__metadata__") or {}
        for key in card:
            card[key] = json.dumps(changed(json.loads(card[key]), draw))
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]
    if way == "field" and name.endswith(".yaml"):
        lines = data.decode().splitlines()
        place = draw.randrange(len(lines))
        field = lines[place].split(":")[0]
        lines[place] = f"{field}: {draw.choice(('null', 'x', '10', '.nan', '[]', '{}', '*a', '-'))}"
        return "\n".join(lines).encode()
    if way == "gone":
        return b""
    if way == "cut":
        return data[: draw.randrange(len(data) + 1)]
    if way == "flip" and data:
        flipped = bytearray(data)
        for _ in range(draw.choice((1, 8))):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    return draw.choice(TEXTS)


def changed(tree: Any, draw: random.Random) -> Any:
    """A tree with another value in one place, or without the place."""
    if not isinstance(tree, (dict, list)) or not tree:
        return draw.choice(VALUES)
    key = draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    inner = isinstance(tree[key], (dict, list)) and draw.random() < 0.85
    if not inner and draw.random() < 0.2:
        del tree[key]
    else:
        tree[key] = changed(tree[key], draw) if inner else draw.choice(VALUES)
    return tree
