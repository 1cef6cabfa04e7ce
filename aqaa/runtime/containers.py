"""Plain containers with tensors in them, as JSON plus named tensors, and back: no pickle.

What JSON cannot say is an object with one key that begins with ``~``. Types that are not listed
here are refused by name: a state that changes its type on the way is worse than no state.

Letters: none; tensors of any shape pass through.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_PLAIN = (type(None), bool, int, str)
_MAPPINGS = (dict, OrderedDict)
_UNREAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A tree that JSON can hold, and the tensors it names.

    Args:
        value: None, bool, int, float, str, tensor; list, tuple or dict of these, whose keys are
            str or int.

    Raises:
        TypeError: anything else, named with its place.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(value, (), tensors), tensors


def _encode(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"~float": str(value)}
    if isinstance(value, Tensor):
        return {"~tensor": _named(value, place, tensors)}
    if kind in (list, tuple):
        items = [_encode(v, (*place, str(i)), tensors) for i, v in enumerate(value)]
        return items if kind is list else {"~tuple": items}
    if kind in _MAPPINGS:
        return _encode_mapping(value, place, tensors)
    name = ".".join(place) or "the value"
    raise TypeError(f"{name} is a {kind.__qualname__}: it cannot be saved")


def _encode_mapping(
    value: Mapping[Any, Any], place: tuple[str, ...], tensors: dict[str, Tensor]
) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{'.'.join(place)} has the key {key!r}: only str and int can be saved")
    pairs = {key: _encode(item, (*place, str(key)), tensors) for key, item in value.items()}
    if all(type(key) is str and not key.startswith("~") for key in pairs):
        return pairs
    return {"~dict": [[key, item] for key, item in pairs.items()]}


def _named(value: Tensor, place: tuple[str, ...], tensors: dict[str, Tensor]) -> str:
    name = ".".join(place) or "tensor"
    while name in tensors:  # {"a.b": …} beside {"a": {"b": …}}
        name += "+"
    tensors[name] = value.detach()
    return name


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`encode` was given; an ordered dict comes back as a dict.

    Raises:
        ValueError: a tree that :func:`encode` does not write, or a tensor that is missing.
    """
    if type(tree) in (*_PLAIN, float):
        return tree
    if type(tree) is list:
        return [decode(item, tensors) for item in tree]
    if type(tree) is not dict:
        raise ValueError(f"a {type(tree).__qualname__} is no part of a saved state")
    special = [key for key in tree if key.startswith("~")]
    if not special:
        return {key: decode(item, tensors) for key, item in tree.items()}
    if len(tree) != 1:
        raise ValueError(f"{special[0]} stands beside other keys")
    return _decode_special(special[0], tree[special[0]], tensors)


def _decode_special(mark: str, content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if mark == "~tensor":
        if content not in tensors:
            raise ValueError(f"the tensor {content} is missing")
        return tensors[content]
    if mark == "~float" and content in _UNREAL:
        return _UNREAL[content]
    if mark == "~tuple":
        return tuple(decode(item, tensors) for item in content)
    if mark == "~dict":
        return {key: decode(item, tensors) for key, item in content}
    raise ValueError(f"{mark} means nothing in a saved state")
