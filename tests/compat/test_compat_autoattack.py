"""compat.autoattack: what users of the original, and RobustBench, rely on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FixedLogits, images, untouched
from torch import Tensor

from roli_fast.attacks import FAB, Square
from roli_fast.compat import autoattack_parts
from roli_fast.compat.autoattack import AutoAttack, EvaluationState
from roli_fast.compat.original_draws import OfficialDraws, OriginalAPGDT, OriginalFABT
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
    again = adversary(verbose=False).run_standard_evaluation(X, Y, bs=8)
    assert torch.equal(again, x_adv) and capsys.readouterr().out == ""


def test_native_draws_do_not_depend_on_the_batches() -> None:
    found = [
        adversary(rng="native", verbose=False).run_standard_evaluation(X, Y, bs=bs)
        for bs in (4, 13)
    ]
    assert (found[0] - found[1]).abs().max() < 1e-6


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
    with pytest.raises(AttributeError):
        attack.apgd.n_restart = 2  # type: ignore[attr-defined]


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


def test_official_draws_are_those_of_the_reseeded_global_generator() -> None:
    draws = OfficialDraws(9, torch.device("cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(9)
        assert torch.equal(draws.uniform(2, 3), torch.rand(2, 3))
        assert torch.equal(draws.normal(4, 5), torch.randn(4, 5))
        assert torch.equal(draws.sign(7), torch.sign(2 * torch.rand(7) - 1))
        assert draws.below(6) == int(torch.rand(1) * 6)
        before = torch.get_rng_state()
        draws.below(0)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["norm", "eps", "epsilon", "bounds", "rng", "attack_to_run"])
def test_what_an_evaluation_does_not_read_is_refused(name: str) -> None:
    attack = adversary(verbose=False)
    with pytest.raises(ArgumentError, match=f"`{name}`: expected an attribute that AutoAttack"):
        setattr(attack, name, "L2")
    for component in (attack.apgd, attack.apgd_targeted, attack.fab, attack.square):
        with pytest.raises(AttributeError):
            setattr(component, "device", "cpu")  # noqa: B010


def test_a_custom_version(capsys: Any) -> None:
    attack = adversary(version="custom", attacks_to_run=["apgd-dlr", "fab"])
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    attack.run_standard_evaluation(X, Y, bs=20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "using custom version including apgd-dlr, fab."
    assert sum("robust accuracy after" in line for line in lines) == 2


def test_without_a_seed_the_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = adversary(seed=None, verbose=False)
    monkeypatch.setattr("time.time", lambda: 77.5)
    assert attack.get_seed() == 77.5
    x_adv = attack.run_standard_evaluation(X, Y, bs=8)
    assert torch.equal(adversary(seed=77, verbose=False).run_standard_evaluation(X, Y, bs=8), x_adv)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_killed_evaluation_goes_on_and_ends_alike(share: float, tmp_path: Path) -> None:
    model, state = Net(), tmp_path / "state.json"
    truth = adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=4)
    total, model.forwards = model.forwards, 0
    model.stop_at = int(share * total)
    with pytest.raises(KeyboardInterrupt):
        adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=4, state_path=state)
    model.stop_at, model.forwards = 10**9, 0
    x_adv = adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=4, state_path=state)
    assert torch.equal(x_adv, truth)
    assert model.forwards < total * (1.1 - share) + 60  # finished batches are not redone
    kept = EvaluationState.from_disk(state)
    assert kept.run_attacks == NAMES and kept.robust_flags is not None
    assert kept.robust_flags.mean().item() == right(x_adv).float().mean().item()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.6])
def test_going_on_with_other_batches_keeps_the_images_of_those_before(
    share: float, tmp_path: Path
) -> None:
    model, state = Net(), tmp_path / "state.json"
    adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=3)
    model.stop_at, model.forwards = int(share * model.forwards), 0
    with pytest.raises(KeyboardInterrupt):
        adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=3, state_path=state)
    model.stop_at = 10**9
    x_adv = adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=13, state_path=state)
    kept = EvaluationState.from_disk(state)
    again = adversary(model, verbose=False).run_standard_evaluation(X, Y, bs=13, state_path=state)
    assert kept.robust is not None and torch.equal(right(x_adv), kept.robust)
    assert torch.equal(again, x_adv)


def test_images_without_their_state_are_not_taken_for_a_new_ones(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)
    state.unlink()
    with pytest.raises(ArgumentError, match=r"`state_path`.*state\.json\.images.*Remove that"):
        adversary(verbose=False, seed=1).run_standard_evaluation(X, Y, bs=20, state_path=state)
    assert not state.exists()


def test_a_finished_evaluation_is_read_back(tmp_path: Path, capsys: Any) -> None:
    state = tmp_path / "deep" / "state.json"
    first = adversary().run_standard_evaluation(X, Y, bs=8, state_path=state)
    capsys.readouterr()
    assert torch.equal(
        adversary().run_standard_evaluation(X, Y, bs=8, state_path=str(state)), first
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"Restored state from {state}" in lines
    assert "apgd-ce, apgd-t, fab-t, square was/were already run." in lines
    assert "initial clean accuracy: 92.31%" in lines


def _official(_state: Path) -> bytes:
    return json.dumps({"_attacks_to_run": "{'square'}", "_robust_flags": [True]}).encode()


def _cut(state: Path) -> bytes:
    return state.read_bytes()[:100]


def _flags(state: Path) -> bytes:
    return state.read_bytes().replace(b'"robust": "', b'"robust": "x')


@pytest.mark.parametrize(
    "change",
    [_official, _cut, _flags, lambda _: b"", lambda _: b"[1, 2]", lambda _: b"[" * 100_000],
)
def test_a_state_that_cannot_be_read_is_left_as_it_is(change: Any, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)
    content = change(state)
    state.write_bytes(content)
    with pytest.raises(ArgumentError, match="`state_path`: expected a state file.*new file"):
        adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)
    assert state.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(eps=0.04), "settings"),
        (dict(seed=1), "seed"),
        (dict(x=X.flip(0)), "images"),
        (dict(model=FixedLogits(torch.ones(5, 36))), "model"),
        (dict(version="custom", attacks_to_run=["fab"]), "attacks, settings"),
    ],
)
def test_anothers_state_is_left_as_it_is(change: Any, named: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)
    content, options = state.read_bytes(), dict(change)
    x = options.pop("x", X)
    other = adversary(options.pop("model", MODEL), verbose=False, **options)
    with pytest.raises(ArgumentError, match=f"`state_path`: .*has other {named}"):
        other.run_standard_evaluation(x, Y, bs=20, state_path=state)
    assert state.read_bytes() == content


def test_a_state_with_too_few_flags_is_left_as_it_is(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)
    tree = json.loads(state.read_bytes())
    state.write_text(json.dumps(tree | {"robust": tree["robust"][1:]}))
    with pytest.raises(ArgumentError, match=r"`state_path`: .*has other flags \("):
        adversary(verbose=False).run_standard_evaluation(X, Y, bs=20, state_path=state)


def test_without_cuda_the_default_device_is_the_cpu_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert AutoAttack(MODEL).device == torch.device("cpu")
    assert "no CUDA device is available: running on the CPU" in capsys.readouterr().out


def test_a_model_elsewhere_is_named() -> None:
    with pytest.raises(ArgumentError, match="`device`: expected the model's device, meta, got cpu"):
        autoattack_parts.usable_device("cpu", FixedLogits(torch.ones(5, 36, device="meta")), print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="linf"), "`norm`: expected 'Linf', 'L2' or 'L1', got 'linf'"),
        (dict(eps=-1), "`eps`: expected a number >= 0, got -1"),
        (dict(eps=8), "`eps`: expected a radius in linf of at most 1.*Did you mean 8/255"),
        (dict(version="fast"), "`version`: expected one of: standard, plus, rand, custom"),
        (dict(attacks_to_run=["fab"]), "`attacks_to_run`: expected none in version standard"),
        (dict(is_tf_model=True), "`is_tf_model`: expected False"),
        (dict(model=3), "`model`: expected a callable"),
        (dict(search_dtype=torch.int8), "`dtype`: expected torch.float32"),
    ],
)
def test_arguments_that_cannot_be_used(options: Any, message: str) -> None:
    given: Any = dict(model=MODEL, device="cpu", verbose=False) | options
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        AutoAttack(**given)


@pytest.mark.parametrize(
    ("x", "y", "bs", "message"),
    [
        (X, Y + 9, 4, r"`y`: expected labels in \[0, 5\).*Map the labels"),
        (X * 3 - 1, Y, 4, "`x`: expected images within bounds.*models.Normalize"),
        (X, Y, 0, "`bs`: expected an integer >= 1, got 0"),
        (X, Y[:3], 4, "`y_orig`: expected a label for each"),
        (X[:0], Y[:0], 4, "`y_orig`: expected .* one or more images"),
        (X, Y.tolist(), 4, "`y_orig`: expected a torch.Tensor, got list"),
    ],
)
def test_data_that_cannot_be_used(x: Any, y: Any, bs: int, message: str, tmp_path: Path) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        adversary(verbose=False).run_standard_evaluation(x, y, bs=bs)


def test_a_radius_of_zero_and_a_rounding_beyond_a_bound() -> None:
    x = torch.where(X > 0.9, 1 + 1.2e-7, X)
    x_adv, y_adv = adversary(eps=0, verbose=False).run_standard_evaluation(x, Y, 8, True)
    assert torch.equal(x_adv, x.clamp(max=1)) and ((y_adv == Y) == right(x_adv)).all()
    assert adversary(verbose=False).run_standard_evaluation(x, Y).max() <= 1


def test_an_unknown_attack_is_named() -> None:
    attack = adversary(version="custom", attacks_to_run=["pgd"], verbose=False)
    with pytest.raises(ArgumentError, match="`attacks_to_run`: expected some of: apgd-ce.*'pgd'"):
        attack.run_standard_evaluation(X, Y)


def benchmark(model: Any, state_path: Path | None) -> tuple[float, float]:
    """The calls of RobustBench's `benchmark`, in its order and with its arguments."""
    eps, device, batch_size = 0.03, torch.device("cpu"), 8
    x_clean, y_clean = X.to(device), Y.to(device)
    clean = (model(x_clean).argmax(1) == y_clean).float().mean().item()
    adversary = AutoAttack(
        model, norm="Linf", eps=eps, version="standard", device=device, log_path=None
    )
    for component in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        component.n_iter = 3  # quick
    adversary.square.n_queries = 5
    x_adv = adversary.run_standard_evaluation(
        x_clean, y_clean, bs=batch_size, state_path=state_path
    )
    if state_path is None:
        return clean, (model(x_adv).argmax(1) == y_clean).float().mean().item()
    state = EvaluationState.from_disk(state_path)
    assert state.robust_flags is not None
    return clean, state.robust_flags.mean().item()


def test_robustbench_runs_on_it_also_with_a_state_file(tmp_path: Path) -> None:
    """The original's bools made its mean raise."""
    with torch.no_grad():
        clean, robust = benchmark(MODEL, None)
        same_clean, saved = benchmark(MODEL, tmp_path / "aa.json")
    assert clean == same_clean == pytest.approx(12 / 13) and 0 < robust < clean
    assert 0 < saved < clean


def test_a_version_of_our_own_is_none_of_theirs() -> None:
    with pytest.raises(ArgumentError, match="`version`: expected one of: standard, plus, rand"):
        adversary(version="apgd")
