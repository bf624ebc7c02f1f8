"""A reason is logged once a model."""

import logging

import pytest
from torch import nn

from roli_fast.engine.reasons import first_line, say_once


def test_once_a_model_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    for model, text in ((one, "a"), (one, "a"), (one, "b"), (other, "a"), (one, "b")):
        say_once(model, text)
    assert [r.getMessage() for r in caplog.records] == ["a", "b", "a"]
    assert {(r.name, r.levelno) for r in caplog.records} == {("roli_fast.engine", logging.WARNING)}


def test_what_cannot_be_remembered_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    say_once(len, "a")  # a function, but one that has a place for a weak reference
    say_once(3, "b")
    say_once(3, "b")
    assert [r.getMessage() for r in caplog.records] == ["a", "b", "b"]


def test_first_line() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "RuntimeError: one"
    assert first_line(ValueError()) == "ValueError"
