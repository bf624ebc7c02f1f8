"""The loop over a data set: chunks of images, rows of flags of each, the store of what is done.

A row is a search, a radius of a curve or a corruption. Each finished row is saved, so that a
stopped evaluation goes on after the last one; processes share the chunks.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.attacks.base import Ball, BallAttack
from roli_fast.attacks.ensemble import total
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.warning_signs import before_attack
from roli_fast.data import Batch, ImageDataset
from roli_fast.data.corruptions import corrupted
from roli_fast.engine import Cost, InputGradient, SearchModel, plain
from roli_fast.errors import ArgumentError, RunDirectoryError, describe
from roli_fast.evaluate.accuracy import attacked, right_flags, wrong_answers
from roli_fast.evaluate.curve import robustness_curve
from roli_fast.evaluate.passes import expected
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.files import naming, read_json, write_json, write_tensors
from roli_fast.losses import cross_entropy
from roli_fast.running.memory import memory_guard
from roli_fast.running.progress import progress_bar
from roli_fast.running.ranks import Ranks
from roli_fast.seeds import derived_generator
from roli_fast.threat import check_images

logger = logging.getLogger("roli_fast.evaluate")

FORMAT = 3
"""Of a chunk's file."""

CURVE, SHIFT = "curve", "shift"
"""First words of the groups of curves and of corruptions."""

_POLL_SECONDS = 0.5


@dataclass
class Found:
    """One row of flags.

    Args:
        group: rows of a group follow one another: a norm and its searches. The name of any other
            group has a space in it: "unseen ...", "curve ...", "shift ...".
        part: what tells a row from the others of its group: a search's label.
        attacked: how many images it got.
        fooled: bool (B,), true where the model is wrong by it.
        cost: passes, those of asking again included.
        answers: int64 (B,), what the model takes a fooled image for; None where nobody asks.
        lost: images that a search took for adversarial and that were right when asked again.
        seconds: of the wall clock.
        notes: what the search had to say.
    """

    group: str
    part: str
    attacked: int
    fooled: Tensor
    cost: Cost
    answers: Tensor | None = None
    lost: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass
class Chunk:
    """How far a chunk of images is; `merged`, all of them.

    Args:
        name: "00003" say, of its file.
        ids: of its samples.
        clean: flags, which images are classified right as they are.
        answers: int64 (B,), what the model takes them for.
        cost: of that, and of looking for signs.
        signs: warnings, text by kind.
        found: the rows so far, in the order of the plan.
    """

    name: str
    ids: list[int]
    clean: Tensor
    answers: Tensor
    cost: Cost
    signs: dict[str, str] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def under(self, group: str | None) -> tuple[Tensor, Tensor]:
        """(right as they are and by every row of `group`, what the model takes each image for at
        the first row that fools it); None is the group of all norms."""
        alive, answers = self.clean.clone(), self.answers.clone()
        for found in self.found:
            if found.group == group or group is None and " " not in found.group:
                fooled = alive & found.fooled
                alive &= ~found.fooled
                if found.answers is not None:
                    answers[fooled] = found.answers[fooled]
        return alive, answers

    def alive(self, group: str | None) -> Tensor:
        """The flags of `under`."""
        return self.under(group)[0]

    def rows(self, group: str) -> list[Found]:
        """Those of a group."""
        return [found for found in self.found if found.group == group]


def merged(chunks: Sequence[Chunk]) -> Chunk:
    """All chunks as one, its samples in the order of their ids."""
    ids = [i for chunk in chunks for i in chunk.ids]
    order = torch.tensor(ids).argsort()

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[order]

    rows = []
    for same in zip(*(chunk.found for chunk in chunks), strict=True):
        answers = [one.answers for one in same if one.answers is not None]
        row = Found(
            same[0].group,
            same[0].part,
            sum(one.attacked for one in same),
            joined([one.fooled for one in same]),
            total([one.cost for one in same]),
            joined(answers) if answers else None,
            sum(one.lost for one in same),
            sum(one.seconds for one in same),
            tuple(dict.fromkeys(note for one in same for note in one.notes)),
        )
        rows.append(row)
    clean, answers = (joined([getattr(c, name) for c in chunks]) for name in ("clean", "answers"))
    cost = total([chunk.cost for chunk in chunks])
    return Chunk("", sorted(ids), clean, answers, cost, chunks[0].signs, rows)


class Store:
    """The chunks of one evaluation on disk: a JSON file each, replaced whole after every row.
    Adversarial images, where they are asked for, lie beside it and are written first.

    Args:
        folder: the evaluation's.
        identity: hash of all that its results depend on; files of another one are refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / "chunks"
        self._identity = identity

    def _path(self, name: str, kind: str = "json") -> Path:
        return self._folder / f"{name}.{kind}"

    def save(self, chunk: Chunk, images: dict[str, Tensor] | None = None) -> None:
        """Write a chunk; its adversarial `images`, norm -> (B, ...), before it."""
        if images:
            metadata = {"identity": self._identity}
            write_tensors(self._path(chunk.name, "safetensors"), images, metadata)
        rows = []
        for one in chunk.found:
            answers = None if one.answers is None else one.answers.tolist()
            rows.append({**asdict(one), "fooled": to_text(one.fooled), "answers": answers})
        tree = {**asdict(chunk), "clean": to_text(chunk.clean), "answers": chunk.answers.tolist()}
        tree |= {"format": FORMAT, "identity": self._identity, "found": rows}
        write_json(self._path(chunk.name), tree)

    def load(self, name: str, ids: list[int], plan: list[tuple[str, str]]) -> Chunk | None:
        """A chunk as it was saved; None where nothing was.

        Args:
            name: of the chunk.
            ids: the samples that it must have.
            plan: (group, part) of every row, in order.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path = self._path(name)
        if not path.exists():
            return None
        fix = "Nothing was changed. Move that file away to attack its images again, or name a new "
        fix += "folder."
        expected = "the state that this evaluation wrote"
        with naming(path, RunDirectoryError, "--out", expected, fix):
            tree = read_json(path)
            if (tree.pop("format"), tree.pop("identity")) != (FORMAT, self._identity):
                raise ValueError("it belongs to another evaluation")
            found = [_found(row) for row in tree["found"]]
            made = {"clean": to_flags(tree["clean"]), "answers": torch.tensor(tree["answers"])}
            chunk = Chunk(**{**tree, **made, "cost": Cost(**tree["cost"]), "found": found})
            names = [(one.group, one.part) for one in found]
            if (chunk.name, chunk.ids, names) != (name, ids, plan[: len(found)]):
                raise ValueError("it holds other samples or searches")
            every = (chunk.clean, chunk.answers, *(one.fooled for one in found))
            if any(len(flags) != len(ids) for flags in every):
                raise ValueError("a flag is missing")
            return chunk

    def images(self, chunk: Chunk, x: Tensor, norms: tuple[str, ...]) -> dict[str, Tensor]:
        """Saved adversarial images of a chunk, norm -> like `x`; `x` where nothing is fooled."""
        out = {norm: x.clone() for norm in norms}
        fooled = {norm: (chunk.clean & ~chunk.alive(norm)).to(x.device) for norm in norms}
        if not any(bool(flags.any()) for flags in fooled.values()):
            return out
        path = self._path(chunk.name, "safetensors")
        fix = f"Move '{self._path(chunk.name)}' away to attack its images again."
        with naming(path, RunDirectoryError, "--out", "adversarial images", fix):
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self._identity:
                    raise ValueError("it belongs to another evaluation")
                for norm, flags in fooled.items():
                    out[norm][flags] = file.get_tensor(norm).to(x.device)[flags]
        return out


def _found(row: dict[str, Any]) -> Found:
    answers = None if row["answers"] is None else torch.tensor(row["answers"])
    made = {"fooled": to_flags(row["fooled"]), "answers": answers, "cost": Cost(**row["cost"])}
    return Found(**{**row, **made, "notes": tuple(row["notes"])})


@dataclass(frozen=True)
class Seen:
    """A chunk at hand.

    Args:
        chunk: what is known of it by the rows before.
        places: its images', in the order of the evaluation.
        batch: the images, on the model's device.
        images: norm -> adversarial images so far, into which those found are written; empty where
            they are not kept.
    """

    chunk: Chunk
    places: range
    batch: Batch
    images: dict[str, Tensor]


@dataclass(frozen=True)
class Search:
    """An attack on what the searches before it in its group left right.

    Args:
        attack: in its ball.
        label: differs from that of all others in the group.
        group: a norm, or "unseen ...".
        over: the group whose survivors are attacked; None takes what survived every norm.
        seed: of the draws, with group, label and a sample's id.
    """

    attack: Attack
    label: str
    group: str
    over: str | None
    seed: int

    @property
    def names(self) -> list[tuple[str, str]]:
        """(group, part) of each row of flags."""
        return [(self.group, self.label)]

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """The rows of flags, as many as `names`; of the model, its own precision counts. What is
        found is written into `seen.images`."""
        batch, device = seen.batch, seen.batch.x.device
        began, alive = time.perf_counter(), seen.chunk.alive(self.over)
        key = (self.seed, self.group, self.label)
        generator = derived_generator("evaluation", *key, device=device)
        fooled, found = attacked(model, batch, alive.to(device), self.attack, generator)
        row = Found(self.group, self.label, int(alive.sum()), fooled.cpu(), Cost(0, 0))
        row.answers = torch.full((len(alive),), -1)
        if found is None:
            return [row]
        result = found.result
        row.cost, row.notes, row.lost = result.cost, result.notes, int(found.lost.sum())
        if bool(fooled.any()):
            x_adv, y = result.x_adv[result.fooled], batch.y[fooled]
            answers, cost = wrong_answers(model, batch._replace(x=x_adv, y=y))
            row.answers[row.fooled] = answers.cpu()
            row.cost += cost
            if self.group in seen.images:
                seen.images[self.group][fooled] = x_adv
        row.seconds = time.perf_counter() - began
        return [row]


@dataclass(frozen=True)
class Radii:
    """A robustness curve: a row for each radius, of what is wrong there or at a smaller one."""

    attack: BallAttack
    radii: tuple[float, ...]
    seed: int

    @property
    def names(self) -> list[tuple[str, str]]:
        """A row a radius."""
        return [(f"{CURVE} {self.attack.label}", f"{radius:.9g}") for radius in self.radii]

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """The whole cost is the first radius'."""
        curve = robustness_curve(model, [seen.batch], self.attack, self.radii, seed=self.seed)
        costs = [curve.cost, *[Cost(0, 0)] * (len(self.radii) - 1)]
        return [
            Found(*name, len(seen.places), ~right, cost)
            for name, right, cost in zip(self.names, curve.right[1:], costs, strict=True)
        ]


@dataclass(frozen=True)
class Corruption:
    """The same images under one common corruption: what is classified wrong then."""

    kind: str
    severity: int
    dataset: ImageDataset
    seed: int

    @property
    def names(self) -> list[tuple[str, str]]:
        """One row."""
        return [(f"{SHIFT} {self.kind}", str(self.severity))]

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """A forward on the corrupted images."""
        images = corrupted(self.dataset, self.kind, self.severity, seed=self.seed)
        x = images.batch(torch.tensor(seen.places)).x.to(seen.batch.x.device)
        right, cost = right_flags(model, seen.batch._replace(x=x))
        return [Found(*self.names[0], len(seen.places), ~right.cpu(), cost)]


Row = Search | Radii | Corruption


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


@dataclass(frozen=True)
class Images:
    """One set of images and its rows of flags.

    Args:
        name: stands before its chunks' names; empty for the evaluation's own.
        dataset: in the order of the evaluation; labels are outputs of the model.
        rows: what is measured of each chunk, besides the clean images.
        chunk: images of a chunk.
        ball: where to look for signs of masked gradients before the attacks, and whether the model
            is expected to draw; None looks for none.
    """

    name: str
    dataset: ImageDataset
    rows: Sequence[Row]
    chunk: int
    ball: tuple[Ball, bool] | None = None

    @property
    def parts(self) -> dict[str, range]:
        """The name of each chunk and its images' places."""
        count = len(self.dataset)
        starts = enumerate(range(0, count, self.chunk))
        return {f"{self.name}{n:05d}": range(s, min(s + self.chunk, count)) for n, s in starts}

    @property
    def plan(self) -> list[tuple[str, str]]:
        """(group, part) of every row of flags."""
        return [name for row in self.rows for name in row.names]


@dataclass
class Runner:
    """Measures sets of images, chunk by chunk.

    Args:
        model: how searches pass images through the model.
        device: where it is.
        store: where chunks are saved.
        norms: whose adversarial images are saved as well; empty for none.
        check: called now and then, a stop.
        ranks: this process among those that share the chunks.
        quiet: no progress bar.
    """

    model: SearchModel
    device: torch.device
    store: Store
    norms: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    ranks: Ranks = Ranks()
    quiet: bool = False

    def load(self, images: Images, name: str) -> Chunk | None:
        """What is saved of a chunk."""
        ids = images.dataset.ids[list(images.parts[name])].tolist()
        return self.store.load(name, ids, images.plan)

    def attack_dataset(self, images: Images) -> None:
        """Measure this process's share of the chunks, or go on with it.

        Raises:
            OutOfMemoryError: a pass does not fit; what was finished is saved.
        """
        parts, rows = images.parts, len(images.plan)
        kept = {name: self.load(images, name) for name in parts}
        done = {name: c for name, c in kept.items() if c is not None and len(c.found) == rows}
        mine = [name for name in parts if name not in done][self.ranks.rank :: self.ranks.world]
        title = f"evaluate {images.name}".strip(" -")
        bar = progress_bar(
            title if self.ranks.world == 1 else f"{title}, process 1/{self.ranks.world}",
            total=sum(len(parts[name]) for name in mine),
            quiet=self.quiet or not self.ranks.first or not mine,
            smoothing=0.0,  # rows differ, chunks do not: the mean is the better guess
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        with bar:
            for name in mine:
                self.check()
                places = parts[name]
                x, y, ids = images.dataset.batch(torch.tensor(places))
                x = check_images(x, (0.0, 1.0))
                batch = Batch(*(tensor.to(self.device) for tensor in (x, y, ids)))
                size = self.model.engine.batch_size or len(places)
                with memory_guard("--batch_size", size, self.device):
                    bar.clear()  # a line may be logged
                    chunk = kept[name] or self._begin(images, name, batch)
                    for made in self._measure(images, chunk, batch):
                        bar.update(min(made * len(places) / max(1, rows), bar.total - bar.n))
                done[name] = chunk
                robust = sum(int(one.alive(None).sum()) for one in done.values())
                count = sum(len(one.ids) for one in done.values())
                bar.set_postfix_str(f"robust {100 * robust / count:.1f} % of {count}")

    def _measure(self, images: Images, chunk: Chunk, batch: Batch) -> Iterator[int]:
        """Bring one chunk to its end, measurement by measurement; gives how many rows each has."""
        saved = self.store.images(chunk, batch.x, self.norms) if self.norms else {}
        seen, done = Seen(chunk, images.parts[chunk.name], batch, saved), 0
        for row in images.rows:
            done += len(row.names)
            if done > len(chunk.found):
                del chunk.found[done - len(row.names) :]
                chunk.found += row.measure(self.model, seen)
                self.store.save(chunk, saved)
                self.check()
            yield len(row.names)

    def _begin(self, images: Images, name: str, batch: Batch) -> Chunk:
        """One forward on the images as they are; in the first chunk a look for signs, and a word
        on what the searches will take."""
        x, y, places = batch.x, batch.y, images.parts[name]
        signs: dict[str, str] = {}
        began = time.perf_counter()
        with InputGradient(plain(self.model)) as gradient, torch.no_grad():
            logits = gradient.evaluate(x, y, cross_entropy)[1]
            if broken := logits.isnan().any(1).nonzero()[:, 0].tolist():
                names = ", ".join(images.dataset.name(places[place]) for place in broken[:5])
                got = f"NaN for {len(broken)} of {len(logits)}: {names}"
                fix = "Look for a division by zero, or an overflow in half precision."
                raise ArgumentError(
                    describe("model", "numbers as logits of clean images", got, fix)
                )
            right, answers = is_right(logits, y), logits.argmax(1)
            if places.start == 0:
                self._say_cost(images, logits.shape[1], time.perf_counter() - began, right)
            if images.ball and places.start == 0:
                ball, draws = images.ball
                found = before_attack(gradient, x, y, right, ball, draws=draws)
                signs = {sign.kind: sign.text for sign in found}
            chunk = Chunk(
                name, batch.ids.tolist(), right.cpu(), answers.cpu(), gradient.cost, signs
            )
        self.store.save(chunk)
        return chunk

    def _say_cost(self, images: Images, classes: int, seconds: float, right: Tensor) -> None:
        """What the searches take at most, by the clean pass over the first chunk."""
        searches = [row.attack for row in images.rows if isinstance(row, Search)]
        if searches and self.ranks.first and not self.quiet:
            share = right.double().mean().item() / self.ranks.world
            forward, count = seconds / len(right), len(images.dataset)
            logger.info("%s", expected(searches, classes, forward, count * share))

    def collect(self, images: Images) -> list[Chunk]:
        """Every chunk, once all processes are done."""
        done: list[Chunk] = []
        for name in images.parts:
            while (chunk := self.load(images, name)) is None or len(chunk.found) < len(images.plan):
                self.check()
                time.sleep(_POLL_SECONDS)
            done.append(chunk)
        return done
