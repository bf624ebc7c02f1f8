"""compat.autoattack: what users of the original, and RobustBench, rely on."""

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import FixedLogits, images, untouched
from torch import Tensor

import roli_fast.compat.autoattack as package
from roli_fast.attacks import FAB, Square
from roli_fast.compat.autoattack import AutoAttack, EvaluationState, other_utils
from roli_fast.compat.original_draws import OriginalAPGDT, OriginalFABT
from roli_fast.errors import ArgumentError, ArgumentTypeError

NAMES = ["apgd-ce", "apgd-t", "fab-t", "square"]


class Net(FixedLogits):
    """Linear, (B, 1, 6, 6) -> (B, 5); stops at a given forward, as a process that is killed."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        super().__init__(torch.randn(5, 36, generator=source))
        self.eval()
        self.forwards, self.stop_at = 0, 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        if self.forwards >= self.stop_at:
            raise KeyboardInterrupt
        return super().forward(x)


MODEL, X = Net(), images(13, 1, 6, 6)
Y = MODEL(X).argmax(1)
Y[4] = (Y[4] + 1) % 5


def adversary(model: Any = MODEL, norm: str = "Linf", **options: Any) -> AutoAttack:
    """A quick one, on the CPU."""
    options = dict(eps=0.03, seed=0, device="cpu") | options
    made = AutoAttack(model, norm, **options)
    for component in (made.apgd, made.apgd_targeted, made.fab):
        component.n_iter = 3
    made.square.n_queries = 5
    return made


def right(x: Tensor) -> Tensor:
    with torch.no_grad():
        return MODEL(x).argmax(1) == Y


def test_images_labels_and_log_lines(capsys: Any, tmp_path: Path) -> None:
    attack = adversary(log_path=tmp_path / "log.txt")
    with untouched(MODEL):
        x_adv, y_adv = attack.run_standard_evaluation(X, Y, bs=8, return_labels=True)
    robust = right(x_adv)
    assert 1 <= robust.sum() <= 11 and torch.equal(y_adv == Y, robust)
    assert (x_adv - X).abs().max() <= 0.03 + 1e-7
    assert torch.equal(x_adv[robust], X[robust]) and torch.equal(x_adv[4], X[4])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "setting parameters for standard version",
        "using standard version including apgd-ce, apgd-t, fab-t, square.",
    ]
    assert "initial accuracy: 92.31%" in lines
    assert any(line.startswith("apgd-ce - 1/2 - ") for line in lines)
    assert any(line.endswith("out of 8 successfully perturbed") for line in lines)
    assert any(line.startswith("robust accuracy after APGD-CE: ") for line in lines)
    assert any(
        line.startswith("max Linf perturbation: 0.03000, nan in tensor: 0") for line in lines
    )
    assert lines[-1] == f"robust accuracy: {robust.double().mean():.2%}"
    assert (tmp_path / "log.txt").read_text().splitlines() == lines
    again = [
        adversary(rng="native", verbose=False).run_standard_evaluation(X, Y, bs=bs)
        for bs in (4, 13)
    ]
    assert (again[0] - again[1]).abs().max() < 1e-6  # native draws do not depend on the batches
    assert capsys.readouterr().out == ""


def test_individual_attacks_each_attack_all(capsys: Any) -> None:
    attack = adversary()
    found = attack.run_standard_evaluation_individual(X, Y, bs=8)
    assert list(found) == NAMES == attack.attacks_to_run and attack.verbose
    lines = [line for line in capsys.readouterr().out.splitlines() if " by " in line]
    assert [line.split()[3] for line in lines] == [name.upper() for name in NAMES]
    share = right(found["fab-t"]).double().mean()
    assert f"{share:.2%}" in lines[2]
    assert attack.clean_accuracy(found["fab-t"], Y) == share


def test_the_versions_settings_are_the_attributes_that_users_set() -> None:
    attack = AutoAttack(MODEL, "L1", eps=1.0, device="cpu", verbose=False)
    assert (attack.apgd.n_restarts, attack.apgd.use_largereps) == (5, True)
    assert attack.apgd_targeted.n_target_classes == 5 and attack.apgd_targeted.use_largereps
    attack = AutoAttack(MODEL, "Linf", version="rand", device="cpu", verbose=False)
    assert (attack.apgd.eot_iter, attack.apgd.n_restarts) == (20, 1)
    attack = AutoAttack(MODEL, "L2", eps=1.0, version="plus", device="cpu", verbose=False)
    assert attack.attacks_to_run[2:4] == ["fab", "square"]
    assert (attack.apgd.n_restarts, attack.fab.n_restarts) == (5, 5)
    attack.apgd.eot_iter = 7
    attack.set_version("standard")
    assert (attack.apgd.n_restarts, attack.attacks_to_run) == (1, NAMES)
    assert (attack.fab.n_restarts, attack.apgd.eot_iter) == (1, 7)  # what it does not name stays
    attack.fab.n_restarts = 5
    attack.apgd_targeted.n_target_classes, attack.apgd_targeted.loss = 3, "ce-targeted"
    attack.fab.n_target_classes, attack.square.p_init = 2, 0.5
    made: list[Any] = [attack._part(name, 7) for name in ("apgd-t", "fab-t", "fab", "square")]
    assert made[0] == OriginalAPGDT(norm="l2", eps=1.0, targets=3, loss="ce", seed=7)
    assert made[1] == OriginalFABT(norm="l2", eps=1.0, targets=2, seed=7, minimal=False)
    assert isinstance(made[2], FAB) and (made[2].norm, made[2].restarts) == ("l2", 5)
    assert isinstance(made[3], Square) and (made[3].p_init, made[3].rescale_schedule) == (
        0.5,
        False,
    )
    with pytest.raises(ArgumentError, match="`n_restart`: expected an attribute that APGDAttack r"):
        attack.apgd.n_restart = 2


def test_the_model_is_read_at_each_evaluation_and_get_logits_is_what_attacks_see() -> None:
    truth = adversary(verbose=False).run_standard_evaluation(X, Y, bs=8)
    other: Any = adversary(FixedLogits(torch.ones(5, 36)), verbose=False)
    other.model = MODEL
    assert torch.equal(other.run_standard_evaluation(X, Y, bs=8), truth)
    pair: Any = adversary(lambda x: (None, MODEL(x)), verbose=False)
    pair.get_logits = lambda x: pair.model(x)[1]
    assert torch.equal(pair.run_standard_evaluation(X, Y, bs=8), truth)

    class Own(AutoAttack):
        def get_logits(self, x: Tensor) -> Tensor:
            return super().get_logits(x)

    assert Own(MODEL, device="cpu", verbose=False).clean_accuracy(X, Y) == pytest.approx(12 / 13)


def test_without_a_seed_the_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = adversary(seed=None, verbose=False)
    monkeypatch.setattr("time.time", lambda: 77.5)
    assert attack.get_seed() == 77.5
    x_adv = attack.run_standard_evaluation(X, Y, bs=8)
    assert torch.equal(adversary(seed=77, verbose=False).run_standard_evaluation(X, Y, bs=8), x_adv)


@pytest.mark.parametrize(("share", "bs"), [(0.9, 4), (0.3, 13)])
def test_a_killed_evaluation_goes_on(share: float, bs: int, tmp_path: Path, capsys: Any) -> None:
    """An attack that was under way begins anew: with the same batches it ends alike; with others it
    has the images of the run before too. Finished, it is read back."""
    model, state = Net(), tmp_path / "deep" / "state.json"
    truth = adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=4)
    total, model.forwards = model.forwards, 0
    model.stop_at = int(share * total)
    with pytest.raises(KeyboardInterrupt):
        adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=4, state_path=state)
    model.stop_at, model.forwards = 10**9, 0
    x_adv = adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=bs, state_path=state)
    kept = EvaluationState.from_disk(state)
    assert kept.finished == NAMES and kept.robust_flags is not None
    assert torch.equal(kept.robust_flags, right(x_adv).float())
    if bs == 4:
        assert torch.equal(x_adv, truth)
        assert model.forwards < total  # finished attacks are not redone
    capsys.readouterr()
    again = adversary(model).run_standard_evaluation(X, Y, bs=bs, state_path=str(state))
    assert torch.equal(again, x_adv)
    lines = capsys.readouterr().out.splitlines()
    assert f"Restored state from {state}" in lines
    assert "apgd-ce, apgd-t, fab-t, square was/were already run." in lines
    assert "initial clean accuracy: 92.31%" in lines


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(eps=0.04), "has other settings"),
        (dict(x=X.flip(0)), "has other images"),
        (dict(model=FixedLogits(torch.ones(5, 36))), "has other model"),
        (dict(content=b'{"_attacks_to_run": "x", "_robust_flags": [true]}'), "a state file"),
    ],
)
def test_a_state_that_cannot_be_used_is_left_as_it_is(
    options: Any, named: str, tmp_path: Path
) -> None:
    """Another evaluation's; the original's own, a file that was cut off."""
    state, options = tmp_path / "state.json", dict(options)
    adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)
    state.write_bytes(content := options.pop("content", state.read_bytes()))
    x = options.pop("x", X)
    other = adversary(options.pop("model", MODEL), verbose=False, **options)
    with pytest.raises(ArgumentError, match=f"`state_path`: .*{named}.*new file"):
        other.run_standard_evaluation(x, Y, bs=20, state_path=state)
    assert state.read_bytes() == content


def test_without_cuda_the_default_device_is_the_cpu_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert AutoAttack(MODEL).device == torch.device("cpu")
    assert "no CUDA device is available: running on the CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="linf"), "`norm`: expected 'Linf' or 'L2' or 'L1', got 'linf'"),
        (dict(version="apgd"), "`version`: expected 'standard' or 'plus' or 'rand' or 'custom'"),
        (dict(attacks_to_run=["fab"]), "`attacks_to_run`: expected none in version standard"),
        (dict(version="custom", attacks_to_run=["pgd"]), "`attacks_to_run`: expected 'apgd-ce'"),
        (dict(is_tf_model=True), "`is_tf_model`: expected False"),
        (dict(x=X * 3 - 1), "`x`: expected images within bounds.*models.Normalize"),
    ],
)
def test_what_cannot_be_evaluated(options: Any, message: str) -> None:
    given = dict(verbose=False) | options
    x, y = given.pop("x", X), given.pop("y", Y)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        adversary(**given).run_standard_evaluation(x, y, bs=4)


KINDS = {
    "apgd-ce": lambda model, **o: package.APGDAttack(model, n_iter=3, **o),
    "apgd-dlr": lambda model, **o: package.APGDAttack(model, n_iter=3, loss="dlr", **o),
    "apgd-t": lambda model, **o: package.APGDAttack_targeted(model, n_iter=3, **o),
    "fab": lambda model, **o: package.FABAttack_PT(model, n_iter=3, **o),
    "fab-t": lambda model, **o: package.FABAttack_PT(model, n_iter=3, targeted=True, **o),
    "square": lambda model, **o: package.SquareAttack(model, n_queries=5, resc_schedule=False, **o),
}
"""The parts, built as code that uses them alone does."""


@pytest.mark.parametrize("name", KINDS)
def test_a_part_alone_finds_what_the_evaluation_finds(name: str, capsys: Any) -> None:
    whole = adversary(version="custom", attacks_to_run=[name], verbose=False)
    whole.apgd.n_restarts = whole.fab.n_restarts = 1
    truth = whole.run_standard_evaluation(X, Y, bs=20)
    right_ones = right(X)
    alone = KINDS[name](MODEL, norm="Linf", eps=0.03, seed=0, verbose=True)
    with untouched(MODEL):
        found = alone.perturb(X[right_ones], Y[right_ones])
    assert torch.equal(found, truth[right_ones])
    assert f"fooled {12 - int(right(truth).sum())} of 12" in capsys.readouterr().out
    assert torch.equal(alone.perturb(X[right_ones]), found)  # what is predicted are the labels
    inside = {"apgd-t": whole.apgd_targeted, "square": whole.square}
    part: Any = inside.get(name) or (whole.fab if "fab" in name else whole.apgd)
    part.seed = 0
    assert torch.equal(part.perturb(X[right_ones], Y[right_ones]), found)


def test_a_parts_settings_are_read() -> None:
    pair: Any = package.APGDAttack(lambda x: (None, MODEL(x)), n_iter=3, eps=0.03, seed=5)
    pair.get_logits = lambda x: pair.model(x)[1]
    truth = package.APGDAttack(MODEL, n_iter=3, eps=0.03, seed=5)
    assert torch.equal(pair.perturb(X, Y), truth.perturb(X, Y))
    truth.seed = None  # the time
    truth.topk, truth.use_rs, truth.verbose, truth.device = 3, False, False, "cpu"
    best = truth.perturb(X, Y, best_loss=True)
    losses = [torch.nn.functional.cross_entropy(MODEL(x), Y, reduction="none") for x in (best, X)]
    assert (losses[0] > losses[1]).all()
    assert package.FABAttack_PT(MODEL, "L1").eps == 5.0
    with pytest.raises(ArgumentError, match="`eps`: expected a radius, got None"):
        package.APGDAttack(MODEL).perturb(X, Y)


def test_square_goes_towards_a_class() -> None:
    attack = package.SquareAttack(MODEL, eps=0.5, n_queries=150, targeted=True)
    target = (MODEL(X).argmax(1) + 1) % 5
    with untouched(MODEL):
        found = attack.perturb(X, target)
    reached, moved = MODEL(found).argmax(1) == target, (found != X).flatten(1).any(1)
    assert torch.equal(reached, moved) and reached.sum() >= 5
    torch.manual_seed(0)
    drawn = attack.perturb(X)
    assert (MODEL(drawn).argmax(1) != MODEL(X).argmax(1)).sum() >= 5


SIGNATURES = {
    package.APGDAttack: "predict n_iter norm n_restarts eps seed loss eot_iter rho topk verbose",
    package.APGDAttack_targeted: "predict n_iter norm n_restarts eps seed eot_iter rho topk",
    package.FABAttack_PT: "predict norm n_restarts n_iter eps alpha_max eta beta loss_fn verbose",
    package.SquareAttack: "predict norm n_queries eps p_init n_restarts seed verbose targeted loss",
}


def test_arguments_in_the_originals_order() -> None:
    for kind, names in SIGNATURES.items():
        assert " ".join(inspect.signature(kind).parameters).startswith(names)


def test_helpers_by_hand(capsys: Any) -> None:
    x = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.5]])
    assert other_utils.L0_norm(x).tolist() == [2, 1]
    assert other_utils.L1_norm(x).tolist() == [7.0, 0.5]
    assert other_utils.L2_norm(x[:, :, None], keepdim=True).tolist() == [[[5.0]], [[0.5]]]
    moved = torch.tensor([[0.5, 0.5]]) + torch.tensor([[0.3, 0.1]])
    delta = other_utils.L1_projection(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.3, 0.1]]), 0.2)
    assert torch.allclose(moved + delta, torch.tensor([[0.7, 0.5]]))
    line = other_utils.check_imgs(x, x + 1, "L1")
    assert line.startswith("max L1 pert: 3.00000, nan in imgs: 0, max in imgs: 3.00000")
    assert capsys.readouterr().out.strip() == line


@pytest.fixture
def stand_in() -> Iterator[None]:
    """What a client does before it imports `autoattack`."""
    sys.modules["autoattack"] = package
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "autoattack"]:
            del sys.modules[name]


MODULES = {
    "autoattack": ["AutoAttack"],
    "autopgd_base": ["APGDAttack", "APGDAttack_targeted", "L0_norm", "L1_norm", "L1_projection"],
    "square": ["SquareAttack"],
    "fab_pt": ["FABAttack_PT"],
    "state": ["EvaluationState"],
    "other_utils": ["Logger", "L2_norm", "check_imgs"],
}


def test_the_originals_modules_are_there_and_no_copies(stand_in: None) -> None:
    for name, members in MODULES.items():
        own = import_module(f"roli_fast.compat.autoattack.{name}")
        other = import_module(f"autoattack.{name}")
        assert isinstance(own, ModuleType) and own is other
        for member in members:
            assert getattr(own, member, None) is not None
    with pytest.raises(ModuleNotFoundError, match="fab_tf"):
        import_module("autoattack.fab_tf")


ROBUSTBENCH = """
from autoattack import AutoAttack
from autoattack.state import EvaluationState

def benchmark(model, x, y, eps, device, batch_size, log_path=None, aa_state_path=None):
    adversary = AutoAttack(
        model, norm="Linf", eps=eps, version="standard", device=device, log_path=log_path
    )
    quick(adversary)
    x_adv = adversary.run_standard_evaluation(x, y, bs=batch_size, state_path=aa_state_path)
    if aa_state_path is None:
        return (model(x_adv).argmax(1) == y).float().mean().item()
    aa_state = EvaluationState.from_disk(aa_state_path)
    assert aa_state.robust_flags is not None
    assert aa_state.attacks_to_run == aa_state.run_attacks
    return aa_state.robust_flags.mean().item()
"""
"""The calls of RobustBench's `benchmark`, in its order and with its arguments."""


def quick(adversary: Any) -> None:
    for component in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        component.n_iter = 3
    adversary.square.n_queries = 5


def test_robustbench_runs_on_it_also_with_a_state_file(stand_in: None, tmp_path: Path) -> None:
    """The original's bools made its mean raise."""
    names: dict[str, Any] = {"quick": quick}
    exec(ROBUSTBENCH, names)
    asked = (MODEL, X, Y, 0.03, torch.device("cpu"), 8)
    with torch.no_grad():
        robust = names["benchmark"](*asked)
        saved = names["benchmark"](*asked, aa_state_path=tmp_path / "aa.json")
    assert 0 < robust < 12 / 13 and 0 < saved < 12 / 13
