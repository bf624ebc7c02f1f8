"""AutoAttack's evaluation: its attacks in turn, each on what those before left right."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from roli_fast.attacks import Attack, warning_signs
from roli_fast.attacks.auto_attack import COMPONENTS, VERSIONS
from roli_fast.attacks.base import AttackInputs, Ball, check_steps
from roli_fast.attacks.ensemble import EnsembleResult, search_in_turn
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.passes import Passes
from roli_fast.compat.autoattack.components import (
    APGDAttack,
    APGDAttack_targeted,
    Component,
    FABAttack_PT,
    SquareAttack,
    seen,
)
from roli_fast.compat.autoattack.other_utils import Logger
from roli_fast.compat.autoattack.state import EvaluationState, Running, digest
from roli_fast.compat.peers import ReadAttributes, our_norm
from roli_fast.engine import Engine, InputGradient, SearchModel, bound, plain
from roli_fast.engine.input_gradient import Model, check_tensor
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import cross_entropy
from roli_fast.models.weights import plain_tensors
from roli_fast.norms import NORMS
from roli_fast.seeds import derived_generator
from roli_fast.threat import Bounds, check_bounds, check_images, check_positive, check_radius


@dataclass
class _Evaluation:
    """What is evaluated, and what was found so far: images (N, ...) and the state."""

    x: Tensor
    y: Tensor
    bs: int
    x_adv: Tensor
    state: EvaluationState

    @property
    def robust(self) -> Tensor:
        assert self.state.robust is not None
        return self.state.robust


class AutoAttack(ReadAttributes):
    """AutoAttack as its authors' code offers it; see there for the arguments it shares.

    The components `apgd`, `apgd_targeted`, `fab` and `square` have the attributes that one sets:
    `n_restarts`, `n_iter`, `n_target_classes`, `n_queries`, `eot_iter`, `use_largereps`, ...; norm
    and radius are theirs too. `model`, `seed`, `device` and an overridden `get_logits` are read at
    each evaluation, by all of them; what is not read is refused.

    Args:
        model: images (B, ...) -> logits (B, C).
        norm: "Linf", "L2" or "L1".
        eps: radius.
        seed: of all draws; None takes the time, anew for every batch.
        verbose: log to standard output.
        attacks_to_run: components of version "custom", in their order.
        version: "standard", "plus", "rand" or "custom".
        is_tf_model: only False: TensorFlow's models are not supported.
        device: where images are sent. "cuda" where there is none becomes "cpu", with a line in the
            log: there is no other place where the model could be.
        log_path: file to which the log is added.
        rng: "official" draws, which depend on the batch, or "native" ones, which depend on the
            seed and an image's place in `x_orig` alone.
        bounds: lowest and highest valid pixel.
        search_dtype: torch.bfloat16 searches in it, and checks what it finds in fp32.
    """

    unread = frozenset(("norm", "epsilon", "bounds", "rng", "is_tf_model", "engine"))

    def __init__(  # noqa: PLR0913, PLR0917 - the original's
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device = "cuda",
        log_path: str | Path | None = None,
        *,
        rng: Literal["native", "official"] = "official",
        bounds: Bounds = (0.0, 1.0),
        search_dtype: torch.dtype | None = None,
    ) -> None:
        _check(norm, eps, bounds, version, is_tf_model)
        if version != "custom" and len(attacks_to_run):
            fix = "Set version='custom' to choose the attacks."
            got = repr(list(attacks_to_run))
            raise ArgumentError(describe("attacks_to_run", f"none in version {version}", got, fix))
        self.model, self.norm, self.epsilon, self.seed = model, norm, float(eps), seed
        self.verbose, self.version, self.rng, self.bounds = verbose, version, rng, bounds
        self.attacks_to_run = list(attacks_to_run)
        self.logger = Logger(log_path)
        self.device = usable_device(device, model, self.logger)
        self.engine = Engine(dtype=search_dtype or torch.float32)
        self.engine.bind(model)  # raises where it cannot
        common = dict(norm=norm, eps=self.epsilon, seed=seed)
        self.apgd = APGDAttack(model, n_restarts=5, **common)
        self.apgd_targeted = APGDAttack_targeted(model, **common)
        self.fab = FABAttack_PT(model, n_restarts=5, **common)
        self.square = SquareAttack(model, resc_schedule=False, **common)
        for component in (self.apgd, self.apgd_targeted, self.fab, self.square):
            vars(component).update(owner=self, rng=rng, bounds=bounds)
        if version != "custom":
            self.set_version(version)
        self._built = True

    def get_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C). Overridden, it is what all attacks see."""
        return self.model(x)

    def searched(self) -> SearchModel:
        """The model as the attacks see it."""
        overridden = self.overrides("get_logits", AutoAttack)
        return seen(self.model, self.get_logits if overridden else None, self.engine)

    def set_version(self, version: str = "standard") -> None:
        """Choose the attacks and the settings of a version; what it does not name stays."""
        _check_version(version, tuple(VERSIONS))
        self._say(f"setting parameters for {version} version")
        self.attacks_to_run = list(VERSIONS[version])
        if version == "rand":
            self.apgd.eot_iter, self.apgd.n_restarts = 20, 1
            return
        wide = version == "standard" and self.norm == "L1"
        if wide:
            self.apgd.use_largereps = self.apgd_targeted.use_largereps = True
        self.apgd.n_restarts = 5 if wide or version == "plus" else 1
        self.fab.n_restarts = 5 if version == "plus" else 1
        self.apgd_targeted.n_restarts = 1
        self.apgd_targeted.n_target_classes = 5 if wide else 9
        self.fab.n_target_classes = 9
        self.square.n_queries = 5000

    def get_seed(self) -> float:
        """The seed, or the time."""
        return time.time() if self.seed is None else self.seed

    def run_standard_evaluation(  # noqa: PLR0913, PLR0917 - the original's
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """Attack what each attack before left right.

        Args:
            x_orig: images (N, ...) inside the bounds, on any device.
            y_orig: labels (N,).
            bs: images that are attacked together.
            return_labels: return (x_adv, y_adv).
            state_path: file in which the evaluation is saved after every batch and from which it
                goes on; images are kept in a folder beside it.

        Returns:
            Images like `x_orig`: what fooled the model, the others as they were. With
            `return_labels` also the labels (N,) that the model gives them.

        Raises:
            ArgumentError: images outside the bounds, labels out of range, bs below 1, a state file
                that cannot be read or belongs to something else (it is left as it is), and the
                like.
        """
        x_orig = self._checked(x_orig, y_orig, bs)
        for name in self.attacks_to_run:
            self._component(name)
        path = None if state_path is None else Path(state_path)
        restored = path is not None and path.exists()
        state = EvaluationState.open(path, self._asked(path, x_orig, y_orig), len(x_orig))
        if path is not None:
            self._say(f"{'Restored state from' if restored else 'Created state in'} {path}")
        todo = [name for name in self.attacks_to_run if name not in state.finished]
        self._say(f"using {self.version} version including {', '.join(todo)}.")
        if state.finished:
            self._say(f"{', '.join(state.finished)} was/were already run.")
        if todo:
            self._look(x_orig[:bs], y_orig[:bs])
        run = _Evaluation(x_orig, y_orig, bs, x_orig.clone().detach(), state)
        self._clean(run)
        for place, images in state.saved_images():
            run.x_adv[place.to(x_orig.device)] = images.to(run.x_adv)
        fooled = self._all_attacks(todo, run)
        self._signs(warning_signs.black_box([self._part(n) for n in fooled], [*fooled.values()]))
        self._summary(run)
        return (run.x_adv, self._labels(run.x_adv, y_orig, bs)) if return_labels else run.x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Each attack on all images: its name -> what `run_standard_evaluation` returns."""
        names, verbose = self.attacks_to_run, self.verbose
        self._say(f"using {self.version} version including {', '.join(names)}.")
        found = {}
        try:
            self.verbose = False
            for name in names:
                begun = time.time()
                self.attacks_to_run = [name]
                x_adv, y_adv = self.run_standard_evaluation(x_orig, y_orig, bs, True)
                found[name] = (x_adv, y_adv) if return_labels else x_adv
                if verbose:
                    share = (y_adv == y_orig).double().mean().item()
                    space = "\t \t" if name == "fab" else "\t"
                    self.logger.log(
                        f"robust accuracy by {name.upper()} {space} {share:.2%} \t "
                        f"(time attack: {time.time() - begun:.1f} s)"
                    )
        finally:
            self.attacks_to_run, self.verbose = names, verbose
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of the images that are classified right."""
        x_orig = self._checked(x_orig, y_orig, bs)
        return (self._labels(x_orig, y_orig, bs) == y_orig).double().mean().item()

    def _all_attacks(self, todo: list[str], run: _Evaluation) -> dict[str, int]:
        """Name -> how many it fooled, for what was run here."""
        begun, fooled = time.time(), {}
        for name in todo:
            before = int(run.robust.sum())
            if before == 0:
                break
            self._one_attack(name, run)
            run.state.finished.append(name)
            run.state.running = None
            run.state.to_disk()
            fooled[name] = before - int(run.robust.sum())
            self._say(
                f"robust accuracy after {name.upper()}: {_share(run.robust):.2%} "
                f"(total time {time.time() - begun:.1f} s)"
            )
        return fooled

    def _one_attack(self, name: str, run: _Evaluation) -> None:
        """The batches of those that were right when it began, from where the state stands."""
        state = run.state
        if state.running is None or (state.running.attack, state.running.bs) != (name, run.bs):
            state.running = Running(name, run.bs, run.robust.clone())
        running = state.running
        batches = running.begun.nonzero()[:, 0].split(run.bs)
        notes: set[str] = set()
        for number, place in enumerate(batches):
            if number < running.batches:
                continue
            at = place.to(run.x.device)
            result = self._search(name, run.x[at], run.y[at], place)
            assert result.fooled is not None
            gone = result.fooled.cpu()
            found = result.x_adv[result.fooled]
            state.save_images(name, place[gone], found)
            run.robust[place[gone]] = False
            running.batches = number + 1
            state.to_disk()
            run.x_adv[at[gone.to(at.device)]] = found.to(run.x_adv)
            self._say(
                f"{name} - {number + 1}/{len(batches)} - {int(gone.sum())} out of "
                f"{len(place)} successfully perturbed"
            )
            for note in result.notes:
                if note not in notes:
                    self._say(f"note: {note}")
            notes.update(result.notes)

    def _search(self, name: str, x: Tensor, y: Tensor, place: Tensor) -> EnsembleResult:
        x, y = x.to(self.device), y.to(self.device)
        everyone = torch.ones_like(y, dtype=torch.bool)  # is right, as the pass before has seen
        seed = int(self.get_seed())
        generator = derived_generator("autoattack", seed, name, device=self.device)
        ids, model = place.to(self.device), self._component(name).searched()
        inputs = AttackInputs(model, x, y, generator, sample_ids=ids)
        return search_in_turn((self._part(name, seed),), inputs, everyone)

    def _part(self, name: str, seed: int = 0) -> Attack:
        component = self._component(name)
        if name.startswith("apgd-") and name != "apgd-t":
            component.loss = name.removeprefix("apgd-")
        if name.startswith("fab"):
            component.targeted = name == "fab-t"
        attack: Any = component.attack(seed)
        return replace(attack, restarts=1) if name == "fab-t" else attack  # as the original's

    def _component(self, name: str) -> Component:
        kinds = {"apgd-t": self.apgd_targeted, "square": self.square}
        if name not in COMPONENTS:
            known = ", ".join(COMPONENTS)
            raise ArgumentError(describe("attacks_to_run", f"some of: {known}", repr(name)))
        return kinds.get(name) or (self.fab if name.startswith("fab") else self.apgd)

    def _look(self, x: Tensor, y: Tensor) -> None:
        """What the model shows before it is attacked."""
        x, y = x.to(self.device), y.to(self.device)
        ball = Ball(NORMS[our_norm(self.norm)], self.epsilon, self.bounds)
        draws = self.version == "rand"
        self._signs(warning_signs.first_look(self.searched(), x, y, ball, draws=draws).signs)

    def _clean(self, run: _Evaluation) -> None:
        """The clean pass, unless the state has it."""
        state = run.state
        if state.robust is not None:
            self._say(f"initial clean accuracy: {state.clean_accuracy:.2%}")
            robust = _share(state.robust)
            self._say(f"robust accuracy at the time of restoring the state: {robust:.2%}")
            return
        flags = []
        with InputGradient(plain(self.searched())) as engine, torch.no_grad():
            for some, labels in zip(run.x.split(run.bs), run.y.split(run.bs), strict=True):
                some, labels = some.to(self.device), labels.to(self.device)
                flags.append(is_right(Passes(engine).clean(some, labels), labels).cpu())
        state.robust = torch.cat(flags)
        state.clean_accuracy = _share(state.robust)
        state.to_disk()
        self._say(f"initial accuracy: {state.clean_accuracy:.2%}")

    def _labels(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        found = []
        with InputGradient(plain(self.searched())) as engine, torch.no_grad():
            for some, labels in zip(x.split(bs), y.split(bs), strict=True):
                some, labels = some.to(self.device), labels.to(self.device)
                found.append(engine.evaluate(some, labels, cross_entropy)[1].argmax(1))
        return torch.cat(found).to(y)

    def _summary(self, run: _Evaluation) -> None:
        found, far = run.x_adv, NORMS[our_norm(self.norm)].distance(run.x_adv, run.x).max()
        self._say(
            f"max {self.norm} perturbation: {far:.5f}, nan in tensor: {int(found.isnan().sum())}, "
            f"max: {found.max():.5f}, min: {found.min():.5f}"
        )
        self._say(f"robust accuracy: {_share(run.robust):.2%}")

    def _asked(self, path: Path | None, x: Tensor, y: Tensor) -> dict[str, str]:
        """What a state file has to agree on."""
        if path is None:
            return {}
        module = bound(self.model).module
        return {
            "attacks": ", ".join(self.attacks_to_run),
            "settings": "; ".join(repr(self._part(name)) for name in self.attacks_to_run),
            "seed": str(self.seed),
            "search_dtype": str(self.engine.low_precision_dtype),
            "images": digest(x, y),
            "model": "" if module is None else digest(*plain_tensors(module.state_dict()).values()),
        }

    def _checked(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        """`x`, without roundings beyond a bound."""
        check_steps("bs", bs)
        x = check_images(x, self.bounds)
        check_tensor("y_orig", y)
        if y.shape != x.shape[:1] or len(x) == 0:
            got = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ArgumentError(describe("y_orig", "a label for each of one or more images", got))
        return x

    def _signs(self, signs: Sequence[warning_signs.Sign]) -> None:
        for sign in signs:
            self.logger.log(f"Warning: {sign.text}")

    def _say(self, text: str) -> None:
        if self.verbose:
            self.logger.log(text)


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _check(norm: str, eps: float, bounds: Bounds, version: str, is_tf_model: bool) -> None:
    check_positive("eps", eps, zero=True)
    check_bounds(bounds)
    check_radius(our_norm(norm), eps, bounds)
    _check_version(version, (*VERSIONS, "custom"))
    if is_tf_model:
        raise ArgumentError(describe("is_tf_model", "False", True, "Only PyTorch is supported."))


def _check_version(version: str, known: tuple[str, ...]) -> None:
    if version not in known:
        raise ArgumentError(describe("version", f"one of: {', '.join(known)}", repr(version)))


def usable_device(device: str | torch.device, model: Model, logger: Logger) -> torch.device:
    """The device to send images to.

    Args:
        device: as the user says it.
        model: its parameters have to be there.
        logger: told where "cuda" becomes "cpu", because there is none.

    Raises:
        ArgumentError: the model is elsewhere.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.log("no CUDA device is available: running on the CPU")
        device = torch.device("cpu")
    module = bound(model).module
    weight = None if module is None else next(module.parameters(), None)
    if weight is None:
        return device
    index_differs = device.index is not None and device.index != weight.device.index
    if weight.device.type != device.type or (device.type == "cuda" and index_differs):
        fix = f"Set device='{weight.device}', or move the model there."
        expected = f"the model's device, {weight.device}"
        raise ArgumentError(describe("device", expected, str(device), fix))
    return device
