"""The light analysis against sums by hand, and which images it attacks."""

from dataclasses import replace

import pytest
import torch
from tiny_models import images, tiny
from torch import Tensor

from roli_fast.analysis.light import Survey, calibrate
from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.models import Classifier

ATTACK = PGD(eps=0.05, steps=2)
Y = torch.arange(10) % 5


def batches(seed: int) -> list[Batch]:
    """Ten images of five classes, in batches of 6 and 4."""
    x, ids = images(10, 3, 8, 8, seed=seed), torch.arange(10) + 100 * seed
    return [Batch(*parts) for parts in zip(x.split(6), Y.split(6), ids.split(6), strict=True)]


def survey() -> Survey:
    return Survey(ATTACK, lambda: batches(1), lambda: batches(2), seed=3)


def x_of(seed: int) -> Tensor:
    return torch.cat([batch.x for batch in batches(seed)])


def changed(model: Classifier, part: str) -> Classifier:
    other = tiny().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if part in name:
                parameter.mul_(1.5)
    return other


def test_a_point_by_hand() -> None:
    model = tiny().eval()
    point = survey().point(model)
    tree = point.as_json()
    with torch.no_grad():
        p = model(x_of(1)).softmax(1)
        phi = model.features(x_of(2)).double()
        adversarial = point.validation.adversarial
        assert adversarial is not None and adversarial.x is not None
        moved = (model.features(adversarial.x).double() - phi).norm(dim=1)
    p[torch.arange(10), Y] -= 1
    assert tree["residual"]["clean"] == pytest.approx(p.norm(dim=1).mean().item(), rel=1e-6)
    assert tree["head"]["norm"] == pytest.approx(model.head.weight.norm().item(), rel=1e-6)
    assert len(tree["head"]["rows"]) == 5
    assert tree["robust_drift"]["absolute"] == pytest.approx(moved.mean().item(), rel=1e-5)
    units = phi / phi.norm(dim=1, keepdim=True)
    cosines = (units @ units.t())[~torch.eye(10, dtype=torch.bool)]
    assert tree["pairwise_cosine"]["clean"] == pytest.approx(cosines.mean().item(), abs=1e-6)
    inside = (adversarial.x - x_of(2)).abs().amax()
    assert 0 < inside <= ATTACK.eps  # type: ignore[operator]


def test_the_change_is_of_images_attacked_at_the_start_and_held() -> None:
    model = tiny().eval()
    other = changed(model, "blocks.0")
    own = survey()
    start, end = own.point(model), own.point(other)
    change = own.change(start, other, end)
    assert start.validation.adversarial is not None
    held = start.validation.adversarial.x
    assert held is not None
    with torch.no_grad():
        for name, x in (("clean", x_of(2)), ("adversarial", held)):
            moved = (other.features(x) - model.features(x)).norm(dim=1).mean()
            assert change[name]["absolute"] == pytest.approx(moved.item(), rel=1e-5)
    still = own.change(start, model, start)["adversarial"]
    assert still["absolute"] == 0
    assert still["cosine"] == pytest.approx(1)


def test_the_same_function_is_attacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage begins where the one before ended: its images under attack are known."""
    model = tiny().eval()
    own = survey()
    seen: list[int] = []
    end = replace(own, after_batch=seen.append).point(model)
    assert sum(seen) == 40
    attacked: list[int] = []
    original = PGD.run

    def counting(self: PGD, found: object, x: Tensor, *rest: object, **options: object) -> object:
        attacked.append(len(x))
        return original(self, found, x, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PGD, "run", counting)
    again = own.point(changed(model, "nothing"), end)
    assert attacked == []
    assert again.train is end.train
    own.point(changed(model, "head"), end)
    assert sum(attacked) == 20


def test_calibration_is_of_both_kinds() -> None:
    model = tiny().eval()
    own = survey()
    look, more = own.look(model, lambda: batches(2)), own.look(model, lambda: batches(4))
    tree = calibrate(more, look)
    assert tree["clean"]["validation_images"] == 10
    assert tree["adversarial"]["test_images"] == 10
    right = (model(x_of(2)).argmax(1) == Y).double().mean().item()
    assert tree["clean"]["before"]["accuracy"] == pytest.approx(right)
    assert not tree["clean"]["fitted"]  # ten images fit no temperature


def test_without_an_attack_clean_images_are_looked_at() -> None:
    own, model = survey(), tiny().eval()
    clean = Survey(None, own.train, own.validation)
    tree, whole = clean.point(model).as_json(), own.point(model).as_json()
    for name in ("residual", "separation", "pairwise_cosine"):
        assert tree[name] == {"clean": whole[name]["clean"], "adversarial": None}
    assert tree["head"] == whole["head"]
    assert set(tree["robust_drift"].values()) == {None}
    change = clean.change(clean.point(model), changed(model, "blocks.0"), clean.point(model))
    assert set(change["adversarial"].values()) == {None} and None not in change["clean"].values()
