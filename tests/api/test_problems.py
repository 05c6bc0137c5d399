"""Messages name the place as its author wrote it."""

from __future__ import annotations

import pytest

from shoal_api.problems import Problem, closest, join_path, show


@pytest.mark.parametrize(
    ("place", "path"),
    [(("spec", "adapters", 0, "name"), "spec.adapters[0].name"), ((), ""), (("a", 1, 2), "a[1][2]")],
)
def test_a_place_is_written_as_in_kubernetes(place, path):
    assert join_path(place) == path


def test_a_problem_is_one_line_with_place_message_and_fix():
    assert str(Problem(("spec", "replicas"), "is wrong", "write 1")) == "spec.replicas: is wrong; write 1"
    assert str(Problem((), "is wrong")) == "is wrong"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("maxModelLength", "maxModelLen"),
        ("max_model_len", "maxModelLen"),
        ("max-model-len", "maxModelLen"),
        ("zzz", ""),
    ],
)
def test_a_slip_is_recognised_and_nothing_else(word, meant):
    assert closest(word, ["maxModelLen", "dtype"]) == meant


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "null"), (True, "true"), ("a", '"a"'), (1.5, "1.5"), ({"a": 1}, "a mapping"), ([1], "a list")],
)
def test_values_are_shown_as_in_yaml_and_never_long(value, shown):
    assert show(value) == shown
    assert len(show("x" * 1000)) <= 60
