"""AutoAttack's evaluation: its attacks in turn, each on what those before left right."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from roli_fast.attacks import Attack, recheck, warning_signs
from roli_fast.attacks.auto_attack import COMPONENTS, VERSIONS
from roli_fast.attacks.base import AttackInputs, AttackResult, Ball
from roli_fast.compat.autoattack.components import (
    APGDAttack,
    APGDAttack_targeted,
    Component,
    FABAttack_PT,
    SquareAttack,
)
from roli_fast.compat.autoattack.other_utils import Logger
from roli_fast.compat.autoattack.state import EvaluationState
from roli_fast.compat.peers import UserAttributes, our_norm
from roli_fast.engine import Engine, InputGradient, bound, plain
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.evaluate.shares import accuracy
from roli_fast.models.weights import fingerprint
from roli_fast.norms import NORMS
from roli_fast.seeds import derived_generator
from roli_fast.threat import Bounds, check_images


@dataclass
class _Evaluation:
    """What is evaluated, in batches of `bs`, and what was found so far: images (N, ...), bool (N,)
    on the CPU of those that are still right, and the state."""

    x: Tensor
    y: Tensor
    bs: int
    x_adv: Tensor
    robust: Tensor
    state: EvaluationState


class AutoAttack(UserAttributes):
    """AutoAttack as its authors' code offers it; see there for the arguments it shares.

    The components `apgd`, `apgd_targeted`, `fab` and `square` have the attributes that one sets:
    `n_restarts`, `n_iter`, `n_target_classes`, `n_queries`, `eot_iter`, `use_largereps`, ...; norm
    and radius are theirs too. `model`, `seed`, `device` and an overridden `get_logits` are read at
    each evaluation, by all of them.

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
        check_choice("version", version, (*VERSIONS, "custom"))
        check_choice("is_tf_model", is_tf_model, (False,))
        if version != "custom" and len(attacks_to_run):
            fix = "Set version='custom' to choose the attacks."
            got = repr(list(attacks_to_run))
            raise ArgumentError(describe("attacks_to_run", f"none in version {version}", got, fix))
        self.norm, self.epsilon, self.seed = norm, float(eps), seed
        self.verbose, self.version, self.bounds = verbose, version, bounds
        self.attacks_to_run = list(attacks_to_run)
        self.logger = Logger(log_path)
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            self.logger.log("no CUDA device is available: running on the CPU")
            self.device = torch.device("cpu")
        self.engine = Engine(dtype=search_dtype or torch.float32)
        common = dict(norm=norm, eps=self.epsilon, seed=seed, device=self.device)
        self.apgd = APGDAttack(model, n_restarts=5, **common)
        self.apgd_targeted = APGDAttack_targeted(model, **common)
        self.fab = FABAttack_PT(model, n_restarts=5, **common)
        self.square = SquareAttack(model, resc_schedule=False, **common)
        self._components = (self.apgd, self.apgd_targeted, self.fab, self.square)
        for component in self._components:
            component.owner, component.rng, component.bounds = self, rng, bounds
        self.model = model
        if version != "custom":
            self.set_version(version)
        self._built = True

    @property
    def model(self) -> Model:
        """What is attacked; set, it is the components' too."""
        return self._model

    @model.setter
    def model(self, model: Model) -> None:
        self.engine.bind(model)  # raises where it cannot
        for component in self._components:
            component.model = model
        self._model = model

    def get_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C). Overridden, it is what all attacks see."""
        return self.model(x)

    def set_version(self, version: str = "standard") -> None:
        """Choose the attacks and the settings of a version; what it does not name stays."""
        check_choice("version", version, tuple(VERSIONS))
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
            state_path: file in which the evaluation is saved after every attack and from which it
                goes on; images are kept in a folder beside it.

        Returns:
            Images like `x_orig`: what fooled the model, the others as they were. With
            `return_labels` also the labels (N,) that the model gives them.

        Raises:
            ArgumentError: images outside the bounds, labels out of range, a state file that cannot
                be read or belongs to something else (it is left as it is), and the like.
        """
        x_orig = check_images(x_orig, self.bounds)
        path = None if state_path is None else Path(state_path)
        restored = path is not None and path.exists()
        state = EvaluationState.open(path, {} if path is None else self._asked(x_orig, y_orig))
        if path is not None:
            self._say(f"{'Restored state from' if restored else 'Created state in'} {path}")
        todo = [name for name in self.attacks_to_run if name not in state.finished]
        self._say(f"using {self.version} version including {', '.join(todo)}.")
        if state.finished:
            self._say(f"{', '.join(state.finished)} was/were already run.")
        if todo:
            self._look(x_orig[:bs].to(self.device), y_orig[:bs].to(self.device))
        robust = self._begin(state, x_orig, y_orig, bs)
        run = _Evaluation(x_orig, y_orig, bs, x_orig.clone(), robust, state)
        for place, images in state.saved_images():
            run.x_adv[place.to(x_orig.device)] = images.to(run.x_adv)
        fooled = self._all_attacks(todo, run)
        self._warn(warning_signs.black_box([self._part(n) for n in fooled], [*fooled.values()]))
        found, far = run.x_adv, NORMS[our_norm(self.norm)].distance(run.x_adv, run.x).max()
        self._say(
            f"max {self.norm} perturbation: {far:.5f}, nan in tensor: {int(found.isnan().sum())}, "
            f"max: {found.max():.5f}, min: {found.min():.5f}"
        )
        self._say(f"robust accuracy: {accuracy(robust):.2%}")
        return (found, self._labels(found, y_orig, bs).to(y_orig)) if return_labels else found

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
                    space = "\t \t" if name == "fab" else "\t"
                    self.logger.log(
                        f"robust accuracy by {name.upper()} {space} "
                        f"{accuracy(y_adv == y_orig):.2%} \t "
                        f"(time attack: {time.time() - begun:.1f} s)"
                    )
        finally:
            self.attacks_to_run, self.verbose = names, verbose
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of the images that are classified right."""
        return accuracy(self._labels(x_orig, y_orig, bs) == y_orig.cpu())

    def _all_attacks(self, todo: list[str], run: _Evaluation) -> dict[str, int]:
        """Name -> how many it fooled, for what was run here."""
        begun, fooled = time.time(), {}
        for name in todo:
            before = int(run.robust.sum())
            if before == 0:
                break
            self._one_attack(name, run)
            fooled[name] = before - int(run.robust.sum())
            self._say(
                f"robust accuracy after {name.upper()}: {accuracy(run.robust):.2%} "
                f"(total time {time.time() - begun:.1f} s)"
            )
        return fooled

    def _one_attack(self, name: str, run: _Evaluation) -> None:
        """The batches of those that were right when it began."""
        begun = run.robust.nonzero()[:, 0]
        batches, noted = begun.split(run.bs), set[str]()
        for number, place in enumerate(batches, start=1):
            at = place.to(run.x.device)
            found = self._search(name, run.x[at], run.y[at], place)
            assert found.fooled is not None
            gone = place[found.fooled.cpu()]
            run.robust[gone] = False
            run.x_adv[gone.to(run.x_adv.device)] = found.x_adv[found.fooled].to(run.x_adv)
            self._say(
                f"{name} - {number}/{len(batches)} - {len(gone)} out of {len(place)} "
                "successfully perturbed"
            )
            for note in found.notes:
                if note not in noted:
                    self._say(f"note: {name}: {note}")
            noted.update(found.notes)
        gone = begun[~run.robust[begun]]
        run.state.finish(name, gone, run.x_adv[gone.to(run.x_adv.device)])

    def _search(self, name: str, x: Tensor, y: Tensor, place: Tensor) -> AttackResult:
        seed = int(self.get_seed())
        inputs = AttackInputs(
            self._component(name).searched(),
            x.to(self.device),
            y.to(self.device),
            derived_generator("autoattack", seed, name, device=self.device),
            sample_ids=place.to(self.device),
        )
        return recheck.search(self._part(name, seed), inputs).result

    def _part(self, name: str, seed: int = 0) -> Attack:
        component = self._component(name)
        if name in ("apgd-ce", "apgd-dlr"):
            component.loss = name.removeprefix("apgd-")
        if name.startswith("fab"):
            component.targeted = name == "fab-t"
        attack: Any = component.attack(seed)
        return replace(attack, restarts=1) if name == "fab-t" else attack  # as the original's

    def _component(self, name: str) -> Component:
        check_choice("attacks_to_run", name, tuple(COMPONENTS))
        kinds = {"apgd-t": self.apgd_targeted, "square": self.square}
        return kinds.get(name) or (self.fab if name.startswith("fab") else self.apgd)

    def _look(self, x: Tensor, y: Tensor) -> None:
        """What the model shows before it is attacked."""
        for name in self.attacks_to_run:
            self._part(name)  # raises where its settings cannot be
        ball, draws = Ball(NORMS[our_norm(self.norm)], self.epsilon, self.bounds), self.version
        model = self.apgd.searched()
        self._warn(warning_signs.first_look(model, x, y, ball, draws=draws == "rand").signs)

    def _begin(self, state: EvaluationState, x: Tensor, y: Tensor, bs: int) -> Tensor:
        """The state's flags, of a clean pass where it has none."""
        if state.robust is not None:
            self._say(f"initial clean accuracy: {state.clean_accuracy:.2%}")
            robust = accuracy(state.robust)
            self._say(f"robust accuracy at the time of restoring the state: {robust:.2%}")
            return state.robust
        state.robust = self._labels(x, y, bs) == y.cpu()
        state.clean_accuracy = accuracy(state.robust)
        state.to_disk()
        self._say(f"initial accuracy: {state.clean_accuracy:.2%}")
        return state.robust

    def _labels(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        """The classes (N,) that the model gives images with the labels `y`, on the CPU; -1 where a
        logit is NaN."""
        found = []
        with InputGradient(plain(self.apgd.searched())) as gradient:
            for some, labels in zip(x.split(bs), y.split(bs), strict=True):
                logits = gradient.evaluate(some.to(self.device), labels.to(self.device))[1]
                found.append(logits.argmax(1).masked_fill(logits.isnan().any(1), -1).cpu())
        return torch.cat(found)

    def _asked(self, x: Tensor, y: Tensor) -> dict[str, str]:
        """What a state file has to agree on."""
        module = bound(self.model).module
        return {
            "attacks": ", ".join(self.attacks_to_run),
            "settings": "; ".join(repr(self._part(name)) for name in self.attacks_to_run),
            "seed": str(self.seed),
            "search_dtype": str(self.engine.low_precision_dtype),
            "images": fingerprint({"x": x, "y": y}),
            "model": "" if module is None else fingerprint(module.state_dict()),
        }

    def _warn(self, signs: Sequence[warning_signs.Sign]) -> None:
        for sign in signs:
            self.logger.log(f"Warning: {sign.text}")

    def _say(self, text: str) -> None:
        if self.verbose:
            self.logger.log(text)
