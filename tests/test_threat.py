"""The threat model and the checks of radius, bounds and images."""

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from waits import waits

from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.threat import (
    ThreatModel,
    check_bounds,
    check_images,
    check_positive,
    known_values,
    values_are_known,
)


def test_defaults_are_the_usual_threat() -> None:
    """linf's radius is none of l2 or l1."""
    assert ThreatModel() == ThreatModel("linf", 8 / 255, (0.0, 1.0))
    assert [ThreatModel(norm).eps for norm in ("l2", "l1")] == [0.5, 12.0]


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    radii: Any = (np.float32(0.5), torch.tensor(12))
    threat = ThreatModel("linf", np.float32(0.25), (0.0, 1.0), ("l2", "l1"), radii)  # type: ignore
    assert repr(threat) == repr(ThreatModel("linf", 0.25, (0.0, 1.0), ("l2", "l1"), (0.5, 12)))


@pytest.mark.parametrize("value", [0, math.nan, "8/255", True])
def test_radii_that_are_none_name_the_argument(value: Any) -> None:
    check_positive("eps", np.float32(0.5))
    kind = ArgumentTypeError if isinstance(value, (str, bool)) else ArgumentError
    with pytest.raises(kind, match=r"`eps`: expected a number > 0.*8/255"):
        ThreatModel(eps=value)


@pytest.mark.parametrize("bounds", [(0, 0), (0, math.inf), (math.nan, 1), (0, 1, 2), None])
def test_bounds_that_are_no_range(bounds: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`bounds`: expected \(low, high\) with low < high"):
        check_bounds(bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bounds", [(0.0, 0.3), (-2.1179, 2.64), (0.1, 0.7)])
def test_images_clamped_to_bounds_their_dtype_cannot_hold_pass(
    dtype: torch.dtype, bounds: tuple[float, float]
) -> None:
    x = torch.linspace(-4, 4, 32, dtype=dtype).clamp(*bounds).view(2, 16)
    assert torch.equal(check_images(x, bounds), x)


@pytest.mark.parametrize("value", [-1e-6, 1.000001, math.nan, math.inf])
def test_one_pixel_outside_is_refused_with_the_hint(value: float) -> None:
    x = torch.full((2, 3, 4, 4), 0.5)
    x[1, 2, 3, 0] = value
    message = r"`x`: expected images within bounds.*(1e-06|9.5e-07|nan|inf) beyond.*models.Normali"
    with pytest.raises(ArgumentError, match=message):
        check_images(x, (0.0, 1.0))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (0.25, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_few_roundings_beyond_a_bound_are_clamped(
    dtype: torch.dtype, bounds: tuple[float, float]
) -> None:
    spacing = torch.finfo(dtype).eps * bounds[1]
    low, high = bounds
    x = torch.tensor([[low - 2 * spacing, low], [high, high + 2 * spacing]], dtype=dtype)
    kept = x.clone()
    assert check_images(x, bounds).tolist() == [[low, low], [high, high]]
    assert torch.equal(x, kept)
    with pytest.raises(ArgumentError, match="within bounds"):
        check_images(x + 10 * spacing, bounds)


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3), np.zeros((2, 3))]
)
def test_what_is_no_batch_of_images(x: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"`x`: expected a floating-point tensor.*255"):
        check_images(x, (0.0, 1.0))


def test_values_that_are_known_are_not_looked_at() -> None:
    """Types and shapes are, and afterwards all is as before, also after an error."""
    bad = torch.full((2, 3), 7.0)
    with pytest.raises(RuntimeError, match="inside"), known_values():
        check_images(bad, (0.0, 1.0))
        assert waits(lambda: check_images(bad, (0.0, 1.0))) == []
        with pytest.raises(ArgumentTypeError, match="floating-point"):
            check_images(bad.int(), (0.0, 1.0))
        raise RuntimeError("inside")
    with pytest.raises(ArgumentError, match="within bounds"):
        check_images(bad, (0.0, 1.0))


def test_known_values_are_those_of_one_thread() -> None:
    found: list[bool] = []
    with known_values():
        other = threading.Thread(target=lambda: found.append(values_are_known()))
        other.start()
        other.join()
        assert values_are_known() and found == [False]
    assert not values_are_known()


THREE = ThreatModel("linf", 8 / 255, other_norms=("l2", "l1"), other_eps=(0.5, 12.0))


def test_a_threat_of_several_norms_is_one_threat_for_each() -> None:
    assert THREE.each == (ThreatModel(), ThreatModel("l2", 0.5), ThreatModel("l1", 12.0))
    assert [THREE.radius(norm) for norm in ("linf", "l2", "l1")] == [8 / 255, 0.5, 12.0]
    lists: Any = {"other_norms": ["l2", "l1"], "other_eps": [0.5, 12.0]}
    assert hash(ThreatModel(**lists)) == hash(THREE) and ThreatModel(**lists) == THREE


@pytest.mark.parametrize(
    "norms, eps, words",
    [
        (("l2",), (), r"`other_eps`: expected one radius for each other norm, got 0 for 1 \(l2\)"),
        (
            ("linf",),
            (0.1,),
            r"`other_norms`: expected different norms of: l1, l2, .*is `norm` alre",
        ),
        (("l2",), (-0.5,), r"`other_eps`: expected a number > 0, got -0.5"),
    ],
)
def test_other_norms_that_fit_not(norms: Any, eps: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        ThreatModel(other_norms=norms, other_eps=eps)


def test_what_else_a_threat_cannot_be() -> None:
    """8 for 8/255; in the other norms a radius above the range of one pixel is common."""
    with pytest.raises(ArgumentError, match=r"`eps`.*Did you mean 8/255"):
        ThreatModel(eps=8)
    wrong: Any = "l2"
    with pytest.raises(ArgumentTypeError, match="`other_norms`: expected several values"):
        ThreatModel(other_norms=wrong, other_eps=(0.5,))
    with pytest.raises(ArgumentError, match=r"`other_eps`.*Did you mean 8/255"):
        ThreatModel("l2", 0.5, other_norms=("linf",), other_eps=(8,))
    with pytest.raises(ArgumentError, match=r"`norm`.*\(linf\), got 'l1', which has no eps"):
        ThreatModel().radius("l1")
    with pytest.raises(ArgumentError, match="`norm`: expected one of: l1, l2, linf, got 'l3'"):
        ThreatModel("l3", 1.0)
