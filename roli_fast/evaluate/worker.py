"""Attacks one chunk, search by search."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast.attacks import Attack, AutoAttack
from roli_fast.attacks.base import AttackInputs, Ball
from roli_fast.attacks.ensemble import AttackState, search_in_turn, total
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.warning_signs import before_attack
from roli_fast.data import Batch, ImageDataset
from roli_fast.engine import InputGradient, SearchModel, plain
from roli_fast.errors import ArgumentError, RunDirectoryError, describe
from roli_fast.evaluate.assessment import Assessment
from roli_fast.evaluate.state import Chunk, Found, Store
from roli_fast.losses import cross_entropy
from roli_fast.norms import NORMS
from roli_fast.running.memory import memory_guard
from roli_fast.seeds import derived_generator
from roli_fast.threat import ThreatModel, check_images


@dataclass(frozen=True)
class Search:
    """One search of an evaluation; `label` differs from that of all others in its group.

    A group's searches follow one another, each on what those before left right: those of a norm,
    which its name is, or the parts of an unseen attack.
    """

    threat: ThreatModel
    attack: Attack
    label: str
    group: str


def plan(assessment: Assessment) -> list[Search]:
    """Every search, in the order in which a chunk meets them."""
    searches: list[Search] = []
    for threat in assessment.threats:
        attacks = [attack.under(threat) for attack in assessment.attacks]
        searches += _group(threat.norm, threat, attacks)
    for one in assessment.unseen_attacks:
        searches += _group(one.group, one.threat, [one.attack])
    return searches


def _group(name: str, threat: ThreatModel, attacks: Sequence[Attack]) -> Iterator[Search]:
    seen: dict[str, int] = {}
    for part in (part for attack in attacks for part in attack.parts):
        count = seen[part.label] = seen.get(part.label, 0) + 1
        label = part.label if count == 1 else f"{part.label}#{count}"
        yield Search(threat, part, label, name)


@dataclass
class Worker:
    """What all chunks share.

    Args:
        assessment: what is evaluated.
        dataset: the images, in the order of the evaluation.
        model: how searches pass images through the model.
        searches: the plan.
        store: where chunks are saved.
        device: where the model is.
        after_search: called after each search on a chunk; a progress bar, or a stop.
    """

    assessment: Assessment
    dataset: ImageDataset
    model: SearchModel
    searches: list[Search]
    store: Store
    device: torch.device
    after_search: Callable[[Chunk], None]

    def load(self, number: int, rows: range) -> Chunk | None:
        """What is saved of a chunk."""
        labels = [(search.group, search.label) for search in self.searches]
        return self.store.load(number, self.dataset.ids[list(rows)].tolist(), labels)

    def run(self, number: int, rows: range) -> None:
        """Attack a chunk, or go on with it, to its end.

        Raises:
            OutOfMemoryError: a pass does not fit; what was finished is saved.
        """
        batch = self.dataset.batch(torch.arange(rows.start, rows.stop))
        chunk, digest = self.load(number, rows), _digest(batch.x)
        x = check_images(batch.x.to(self.device), self.assessment.threats[0].bounds)
        batch = Batch(x, batch.y.to(self.device), batch.ids.to(self.device))
        with memory_guard("--batch_size", self.assessment.batch_size, self.device):
            self._go_on(chunk, digest, number, rows, batch)

    def _go_on(
        self, chunk: Chunk | None, digest: str, number: int, rows: range, batch: Batch
    ) -> None:
        if chunk is None:
            chunk = self._begin(number, rows, batch, digest)
            self.store.save(chunk)
        elif chunk.pixels != digest:
            fix = "Put the images back, or start a new evaluation."
            got = f"other pixels in chunk {number} than when it began"
            raise RunDirectoryError(describe("data", "the images of this evaluation", got, fix))
        images = None
        if self.assessment.save_adversarial:
            images = self.store.images(chunk, batch.x, self.assessment.norm)
        for place in range(len(chunk.found), len(self.searches)):
            self._search(chunk, self.searches[place], place, batch, images)
            self.store.save(chunk, images)
            self.after_search(chunk)

    def _begin(self, number: int, rows: range, batch: Batch, digest: str) -> Chunk:
        """One forward on the images as they are, and a look for signs in the first chunk."""
        x, y = batch.x, batch.y
        signs: dict[str, str] = {}
        with InputGradient(plain(self.model)) as engine, torch.no_grad():
            logits = engine.evaluate(x, y, cross_entropy)[1]
            self._check_numbers(logits, rows)
            right = is_right(logits, y)
            if number == 0:
                threat = self.assessment.threats[0]
                ball = Ball(NORMS[threat.norm], threat.eps, threat.bounds)
                draws = any(
                    isinstance(a, AutoAttack) and a.version == "rand"
                    for a in self.assessment.attacks
                )
                for sign in before_attack(engine, x, y, right, ball, draws=draws):
                    signs[sign.kind] = sign.text
            return Chunk(number, batch.ids.tolist(), digest, right.cpu(), engine.cost, signs)

    def _check_numbers(self, logits: Tensor, rows: range) -> None:
        broken = logits.isnan().any(1).nonzero()[:, 0].tolist()
        if broken:
            names = ", ".join(self.dataset.name(rows[place]) for place in broken[:5])
            got = f"NaN for {len(broken)} of {len(logits)}: {names}"
            fix = "Look for a division by zero, or an overflow in half precision."
            raise ArgumentError(describe("model", "numbers as logits of clean images", got, fix))

    def _search(
        self,
        chunk: Chunk,
        search: Search,
        place: int,
        batch: Batch,
        images: dict[str, Tensor] | None,
    ) -> None:
        norm = search.group
        alive = chunk.alive(None if self.assessment.union_only else norm)
        began = time.perf_counter()
        seed = (self.assessment.seed, norm, search.label)
        generator = derived_generator("evaluation", *seed, device=self.device)
        state = AttackState.begin(batch.x, alive.to(self.device))
        inputs = AttackInputs(self.model, batch.x, batch.y, generator, sample_ids=batch.ids)
        search_in_turn((search.attack,), inputs, state, (search.label,))
        fooled = state.fooled_by >= 0
        if images is not None and norm in images:
            images[norm][fooled] = state.x_adv[fooled]
        notes = (note.removeprefix(f"{search.label}: ") for note in state.notes)
        chunk.found.append(
            Found(
                norm,
                search.label,
                int(alive.sum()),
                fooled.cpu(),
                state.lost,
                total(state.costs),
                time.perf_counter() - began,
                tuple(notes),
            )
        )


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
