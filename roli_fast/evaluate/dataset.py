"""The loop over a data set: rows of flags (an attack, a corruption) of every image, chunk by chunk.

Each finished row is saved, so that a stopped evaluation goes on after the last one; processes
share the chunks. Unseen attacks and the radii of curves are rows like any other.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks import Attack, recheck
from roli_fast.attacks.base import AttackInputs
from roli_fast.attacks.ensemble import total
from roli_fast.attacks.objective import is_right
from roli_fast.data import Batch, ImageDataset
from roli_fast.data.corruptions import corrupted
from roli_fast.engine import Cost, InputGradient, SearchModel, plain
from roli_fast.errors import ArgumentError, RunDirectoryError, describe
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.files import naming, read_json, read_tensors, write_json, write_tensors
from roli_fast.losses import cross_entropy
from roli_fast.norms import NORMS
from roli_fast.running.memory import memory_guard
from roli_fast.running.progress import progress_bar
from roli_fast.running.ranks import Ranks
from roli_fast.seeds import derived_generator

FORMAT = 4
"""Of a chunk's file."""

SHIFT = "shift"
"""First word of the groups of corruptions."""


@dataclass
class RowResult:
    """What one row found on some images.

    Args:
        group: of rows that belong together: the norm of attacks, "unseen ...", "curve ...",
            "shift ...".
        label: tells a row from the others of its group.
        attacked: how many images it got.
        fooled: bool (B,), true where the model is wrong by it.
        predictions: int64 (B,), what the model takes a fooled image for; -1 elsewhere.
        cost: passes, those of asking again included.
        lost: images that an attack took for adversarial and that were right when asked again.
        seconds: of the wall clock.
        notes: what the attack had to say.
    """

    group: str
    label: str
    attacked: int
    fooled: Tensor
    predictions: Tensor
    cost: Cost
    lost: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row in JSON's types."""
        flags = {"fooled": to_text(self.fooled), "predictions": _words(self.predictions)}
        return asdict(self) | flags

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "RowResult":
        """The row that `as_json` wrote."""
        made: dict[str, Any] = {"cost": Cost(**tree["cost"]), "notes": tuple(tree["notes"])}
        made |= {"fooled": to_flags(tree["fooled"]), "predictions": _numbers(tree["predictions"])}
        return cls(**{**tree, **made})


@dataclass
class Chunk:
    """How far some images are.

    Args:
        start: the place of the first of them in the order of the evaluation.
        ids: of the samples.
        clean: bool (B,), which images are classified right as they are.
        predictions: int64 (B,), what the model takes them for; -1 where a logit is NaN.
        cost: of that.
        rows: the results so far, in the order of the rows.
        x_adv: norm -> adversarial images so far, like the images; empty where they are not kept.
    """

    start: int
    ids: list[int]
    clean: Tensor
    predictions: Tensor
    cost: Cost
    rows: list[RowResult] = field(default_factory=list)
    x_adv: dict[str, Tensor] = field(default_factory=dict)

    def under(self, *groups: str) -> tuple[Tensor, Tensor]:
        """(right as they are and by every row of these groups, what the model takes each image for
        at the first row that fools it)."""
        right, predictions = self.clean.clone(), self.predictions.clone()
        for row in self.rows:
            if row.group in groups:
                fooled = right & row.fooled
                right &= ~row.fooled
                predictions[fooled] = row.predictions[fooled]
        return right, predictions

    def right(self, *groups: str) -> Tensor:
        """The flags of `under`."""
        return self.under(*groups)[0]

    def group(self, name: str) -> list[RowResult]:
        """The rows of a group."""
        return [row for row in self.rows if row.group == name]


def merged(chunks: Sequence[Chunk]) -> Chunk:
    """All chunks as one, its samples in the order of their ids."""
    ids = [i for chunk in chunks for i in chunk.ids]
    order = torch.tensor(ids).argsort()

    def joined(name: str, parts: Sequence[Chunk | RowResult]) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order]

    rows = [
        RowResult(
            same[0].group,
            same[0].label,
            sum(row.attacked for row in same),
            joined("fooled", same),
            joined("predictions", same),
            total([row.cost for row in same]),
            sum(row.lost for row in same),
            sum(row.seconds for row in same),
            tuple(dict.fromkeys(note for row in same for note in row.notes)),
        )
        for same in zip(*(chunk.rows for chunk in chunks), strict=True)
    ]
    clean, predictions = joined("clean", chunks), joined("predictions", chunks)
    return Chunk(0, sorted(ids), clean, predictions, total([c.cost for c in chunks]), rows)


def clean_pass(model: SearchModel, batch: Batch, start: int = 0) -> Chunk:
    """What the model in its own precision makes of the images as they are, without rows."""
    with InputGradient(plain(model)) as gradient, torch.no_grad():
        logits = gradient.evaluate(batch.x, batch.y, cross_entropy)[1]
        right = is_right(logits, batch.y).cpu()
        predictions = logits.argmax(1).masked_fill(logits.isnan().any(1), -1).cpu()
        return Chunk(start, batch.ids.tolist(), right, predictions, gradient.cost)


@dataclass(frozen=True)
class AttackRow:
    """An attack on what earlier rows left right.

    Args:
        attack: in its ball.
        label: differs from that of all others in the group.
        group: a norm, "unseen ..." or "curve ...".
        over: the groups whose survivors are attacked.
        seed: what names the draws, beside a sample's id.
    """

    attack: Attack
    label: str
    group: str
    over: tuple[str, ...]
    seed: tuple[int | str, ...]

    def measure(self, model: SearchModel, batch: Batch, chunk: Chunk) -> RowResult:
        """The row of a chunk; the model's own precision counts. What is found is written into
        `chunk.x_adv`."""
        began, alive = time.perf_counter(), chunk.right(*self.over)
        fooled, predictions = torch.zeros_like(alive), torch.full(alive.shape, -1)
        row = RowResult(self.group, self.label, int(alive.sum()), fooled, predictions, Cost(0, 0))
        if row.attacked == 0:
            return row
        device = batch.x.device
        at, draws = alive.nonzero()[:, 0].to(device), derived_generator(*self.seed, device=device)
        ids = batch.ids.to(device)[at]
        inputs = AttackInputs(model, batch.x[at], batch.y[at], draws, sample_ids=ids)
        found = recheck.search(self.attack, inputs)
        assert found.result.fooled is not None
        fooled[alive], predictions[alive] = found.result.fooled.cpu(), found.predictions.cpu()
        row.cost, row.notes, row.lost = found.result.cost, found.result.notes, int(found.lost.sum())
        if self.group in chunk.x_adv:
            gone = at[found.result.fooled]
            chunk.x_adv[self.group][gone] = found.result.x_adv[found.result.fooled]
        row.seconds = time.perf_counter() - began
        return row


@dataclass(frozen=True)
class CorruptionRow:
    """The same images under one common corruption: what is classified wrong then."""

    kind: str
    severity: int
    dataset: ImageDataset
    seed: int

    @property
    def group(self) -> str:
        """Of the kind."""
        return f"{SHIFT} {self.kind}"

    @property
    def label(self) -> str:
        """The severity."""
        return str(self.severity)

    def measure(self, model: SearchModel, batch: Batch, chunk: Chunk) -> RowResult:
        """A forward on the corrupted images."""
        count = len(chunk.ids)
        images = corrupted(self.dataset, self.kind, self.severity, seed=self.seed)
        x = images.batch(torch.arange(chunk.start, chunk.start + count)).x
        seen = clean_pass(model, batch._replace(x=x.to(batch.x.device)))
        predictions = seen.predictions.masked_fill(seen.clean, -1)
        return RowResult(self.group, self.label, count, ~seen.clean, predictions, seen.cost)


Row = AttackRow | CorruptionRow


def attack_batches(
    model: SearchModel,
    batches: Iterable[Batch],
    rows: Sequence[Row],
    after_batch: Callable[[int], None] | None = None,
) -> list[Chunk]:
    """Measure every row of batches from anywhere; nothing is saved.

    Raises:
        ArgumentError: no images.
    """
    done: list[Chunk] = []
    for batch in batches:
        chunk = clean_pass(model, batch)
        for row in rows:
            chunk.rows.append(row.measure(model, batch, chunk))
        done.append(chunk)
        if after_batch:
            after_batch(len(batch.y))
    if not any(chunk.ids for chunk in done):
        raise ArgumentError(describe("batches", "at least one image", "none"))
    return done


@dataclass(frozen=True)
class Store:
    """The chunks of a data set on disk: a JSON file each, replaced whole after every row.
    Adversarial images, where they are asked for, lie beside it and are written first.

    Args:
        folder: the evaluation's.
        identity: hash of all that its results depend on; files of another one are refused.
        size: images of a chunk.
        prefix: of the files' names, where an evaluation has several data sets.
        norms: whose adversarial images are kept.
    """

    folder: Path
    identity: str
    size: int
    prefix: str = ""
    norms: tuple[str, ...] = ()

    def path(self, start: int, kind: str = "json") -> Path:
        """The file of the chunk that begins at this place."""
        return self.folder / "chunks" / f"{self.prefix}{start // self.size:05d}.{kind}"

    def save(self, chunk: Chunk) -> None:
        """Write a chunk."""
        if chunk.x_adv:
            write_tensors(self.path(chunk.start, "safetensors"), chunk.x_adv, {})
        tree = {
            "format": FORMAT,
            "identity": self.identity,
            "ids": chunk.ids,
            "clean": to_text(chunk.clean),
            "predictions": _words(chunk.predictions),
            "cost": asdict(chunk.cost),
            "rows": [row.as_json() for row in chunk.rows],
        }
        write_json(self.path(chunk.start), tree)

    def load(self, start: int, dataset: ImageDataset, rows: Sequence[Row]) -> Chunk | None:
        """The chunk that begins at this place as it was saved; None where nothing was.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path, ids = self.path(start), dataset.ids[start : start + self.size].tolist()
        if not path.exists():
            return None
        fix = "Nothing was changed. Move that file away to attack its images again, or name a new "
        fix += "folder."
        expected = "the state that this evaluation wrote"
        with naming(path, RunDirectoryError, "--out", expected, fix):
            tree = read_json(path)
            done = [RowResult.from_json(row) for row in tree["rows"]]
            known = [(row.group, row.label) for row in rows[: len(done)]]
            ours = (tree["format"], tree["identity"], tree["ids"]) == (FORMAT, self.identity, ids)
            if not ours or known != [(row.group, row.label) for row in done]:
                raise ValueError("it belongs to another evaluation")
            clean, predictions = to_flags(tree["clean"]), _numbers(tree["predictions"])
            return Chunk(start, ids, clean, predictions, Cost(**tree["cost"]), done)

    def images(self, chunk: Chunk, x: Tensor) -> dict[str, Tensor]:
        """Saved adversarial images of a chunk, norm -> like `x`; `x` where nothing is fooled."""
        out, path = {norm: x.clone() for norm in self.norms}, self.path(chunk.start, "safetensors")
        if self.norms and path.exists():
            for norm, saved in read_tensors(path).items():
                fooled = (chunk.clean & ~chunk.right(norm)).to(x.device)
                out[norm][fooled] = saved.to(x.device)[fooled]
        return out


def attack_dataset(  # noqa: PLR0913 - what is attacked, and what the surroundings want
    model: SearchModel,
    dataset: ImageDataset,
    rows: Sequence[Row],
    store: Store,
    *,
    device: torch.device,
    ranks: Ranks,
    check: Callable[[], None],
    quiet: bool = False,
) -> None:
    """Measure every row of this process's share of the chunks, or go on with it.

    Args:
        model: how attacks pass images through the model.
        dataset: in the order of the evaluation; labels are outputs of the model.
        rows: what is measured, besides the clean images.
        store: where each row is saved once it is finished.
        device: where the model is.
        ranks: this process among those that share the chunks.
        check: called now and then, a stop.
        quiet: no progress bar.

    Raises:
        OutOfMemoryError: a pass does not fit; what was finished is saved.
        ArgumentError: a logit of an image as it is is NaN.
    """
    starts = range(0, len(dataset), store.size)[ranks.rank :: ranks.world]
    kept = {start: store.load(start, dataset, rows) for start in starts}
    done = {start: c for start, c in kept.items() if c is not None and len(c.rows) == len(rows)}
    missing = [start for start in starts if start not in done]
    title = f"evaluate {store.prefix}".strip(" -")
    bar = progress_bar(
        title if ranks.world == 1 else f"{title}, process 1/{ranks.world}",
        total=len(missing) * (len(rows) + 1),
        quiet=quiet or not ranks.first or not missing,
        smoothing=0.0,  # rows differ, chunks do not: the mean is the better guess
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    )
    norms = [row.group for row in rows if row.group in NORMS]
    with bar:
        for start in missing:
            check()
            places = torch.arange(start, min(start + store.size, len(dataset)))
            batch = Batch(*(tensor.to(device) for tensor in dataset.batch(places)))
            size = model.engine.batch_size or len(places)
            with memory_guard("--batch_size", size, device):
                bar.clear()  # a line may be logged
                chunk = kept[start] or _begin(model, dataset, batch, start)
                for _ in _measure(model, batch, chunk, rows, store):
                    check()
                    bar.update()
            done[start] = chunk
            robust = torch.cat([one.right(*norms) for one in done.values()])
            share = 100 * robust.double().mean().item()
            bar.set_postfix_str(f"robust {share:.1f} % of {len(robust)}")


def _begin(model: SearchModel, dataset: ImageDataset, batch: Batch, start: int) -> Chunk:
    chunk = clean_pass(model, batch, start)
    broken = (chunk.predictions < 0).nonzero()[:, 0].tolist()
    if broken:
        names = ", ".join(dataset.name(start + place) for place in broken[:5])
        fix = "Look for a division by zero, or an overflow in half precision."
        got = f"NaN for {len(broken)} of {len(batch.y)}: {names}"
        raise ArgumentError(describe("model", "numbers as logits of clean images", got, fix))
    return chunk


def _measure(
    model: SearchModel, batch: Batch, chunk: Chunk, rows: Sequence[Row], store: Store
) -> Iterator[None]:
    """Bring one chunk to its end; a step for the clean images and for each row."""
    chunk.x_adv = store.images(chunk, batch.x)
    if not chunk.rows:
        store.save(chunk)
    yield
    for place, row in enumerate(rows):
        if place == len(chunk.rows):
            chunk.rows.append(row.measure(model, batch, chunk))
            store.save(chunk)
        yield
    chunk.x_adv = {}


def collect(dataset: ImageDataset, rows: Sequence[Row], store: Store) -> list[Chunk]:
    """Every chunk, once all processes are done; all of them see the folder."""
    done: list[Chunk] = []
    for start in range(0, len(dataset), store.size):
        chunk = store.load(start, dataset, rows)
        assert chunk is not None and len(chunk.rows) == len(rows), f"images from {start} on"
        done.append(chunk)
    return done


def mixed_order(labels: Tensor, seed: int) -> Tensor:
    """A random order of all samples in which every beginning has the proportions of the classes.

    Class by class the samples are shuffled and spread evenly over [0, 1), from a random offset; the
    order is that of their places. So the first n of it are a random stratified subset, and the
    first chunks of an evaluation already tell about the whole.

    Args:
        labels: int64 (N,).
        seed: of the order, which depends on it and on the labels alone.

    Returns:
        Positions, int64 (N,).
    """
    generator = derived_generator("evaluation order", seed)
    places = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        spread = (torch.arange(len(rows)) + offset) / len(rows)
        places[rows[torch.randperm(len(rows), generator=generator)]] = spread
    return places.argsort(stable=True)


def _words(numbers: Tensor) -> str:
    return " ".join(map(str, numbers.tolist()))


def _numbers(words: str) -> Tensor:
    return torch.tensor([int(word) for word in words.split()])
