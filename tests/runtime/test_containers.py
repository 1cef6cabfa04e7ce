"""Every container of a saved state comes back as it was; anything else is refused by name."""

import json
import math
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from aqaa.runtime.containers import decode, encode

SAME = [
    None,
    True,
    False,
    0,
    -(2**80),
    0.1,
    1e-320,
    -0.0,
    float("inf"),
    float("-inf"),
    "",
    "~tensor",
    "é\n",
    [],
    (),
    {},
    [1, [2.5, (3, None)], "x"],
    (1, (2, [3]), {"a": (4,)}),
    {"a": 1, "b": {"c": []}},
    {0: "a", 1: {"2": 3}, -5: ()},
    {0: "int", "0": "str"},
    {"~tuple": [1], "b": 2},
    {"~float": "nan"},
]


def there_and_back(value: Any) -> Any:
    tree, tensors = encode(value)
    return decode(json.loads(json.dumps(tree, allow_nan=False)), tensors)


def assert_same(a: Any, b: Any) -> None:
    """Equal in value and, unlike ``==``, in every type."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, float):
        assert a.hex() == b.hex()
    else:
        assert a == b


@pytest.mark.parametrize("value", SAME, ids=repr)
def test_it_comes_back_as_it_was(value: Any) -> None:
    assert_same(there_and_back(value), value)


def test_nan_comes_back() -> None:
    assert math.isnan(there_and_back([float("nan")])[0])


def test_an_optimizer_and_its_schedule_come_back() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    tree, tensors = encode({"state_dict": model.state_dict(), "optimizer": state})
    assert sorted(tensors)[0] == "optimizer.state.0.exp_avg"
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert_same(back["optimizer"]["param_groups"], state["param_groups"])
    assert list(back["optimizer"]["state"]) == [0, 1]
    assert back["optimizer"]["state"][1]["exp_avg"].equal(state["state"][1]["exp_avg"])
    assert list(back["state_dict"]) == ["weight", "bias"]


def test_two_tensors_of_one_name_stay_two() -> None:
    value = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "a.b+": torch.tensor(3)}
    back = there_and_back(value)
    assert (int(back["a.b"]), int(back["a"]["b"]), int(back["a.b+"])) == (1, 2, 3)


def test_ordered_dicts_come_back_as_dicts() -> None:
    assert_same(there_and_back(OrderedDict(b=1, a=2)), {"b": 1, "a": 2})


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"x": {1, 2}}, "x is a set"),
        ({"x": [np.float64(1)]}, "x.0 is a float64"),
        ({"x": np.zeros(2)}, "x is a ndarray"),
        ({"x": b"raw"}, "x is a bytes"),
        ({"x": torch.float32}, "x is a dtype"),
        ({"x": torch.Size([1])}, "x is a Size"),
        ({"x": defaultdict(int)}, "x is a defaultdict"),
        ({"x": namedtuple("Pair", "a b")(1, 2)}, "x is a Pair"),
        ({"x": 1j}, "x is a complex"),
        ({"x": len}, "x is a builtin_function_or_method"),
        ({"x": {(1, 2): 3}}, r"x has the key \(1, 2\)"),
        ({"x": {None: 3}}, "x has the key None"),
        ({"x": {True: 3}}, "x has the key True"),
    ],
)
def test_anything_else_is_refused_by_name(value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        encode(value)


@pytest.mark.parametrize(
    "tree",
    [{"~tensor": "gone"}, {"~pickle": "x"}, {"~tuple": [], "b": 1}, {"~float": "1"}],
)
def test_a_tree_of_something_else_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match="~|gone"):
        decode(tree, {})
