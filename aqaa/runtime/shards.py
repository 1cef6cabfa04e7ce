"""The fp32 masters and moments of a ZeRO run, cut by parameter: each rank's share in its own file.

A tensor of a shard file is named ``KEY:PARAMETER:START``: a stretch of the flattened parameter from
element START, as many as it holds; KEY is ``fp32`` or a state of the optimizer. Any number of ranks
and any ZeRO stage can so read what any other wrote, each rank the files that it needs.

What one process with whole copies has saved reads the same way, and the other way round.

Letters: n elements of a stretch, N of a rank's flat partition, which holds several parameters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aqaa.errors import UsageError
from aqaa.runtime.shard_files import Stretch
from aqaa.states import MASTER


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` on of a parameter: ``count`` of them from ``offset`` in ``flat``, (N,)."""

    name: str
    start: int
    count: int
    flat: Tensor
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """Its part, (n,), of a tensor that lies as ``flat`` does."""
        return whole.detach().narrow(0, self.offset, self.count)


def pieces(engine: Any, named: Mapping[str, nn.Parameter]) -> list[Piece]:
    """What this rank holds of each trained parameter.

    Args:
        engine: DeepSpeed's, of stage 1, 2 or 3.
        named: the module's parameters.
    """
    find = _piece_of_stage_3 if engine.zero_optimization_stage() == 3 else _piece_of_stage_1_2
    trained = ((name, p) for name, p in named.items() if p.requires_grad)
    found = (find(engine.optimizer, name, p) for name, p in trained)
    return [piece for piece in found if piece is not None and piece.count > 0]


def stretches(engine: Any, named: Mapping[str, nn.Parameter]) -> list[Stretch]:
    """The same as names and numbers: what :func:`restore` reads on this rank."""
    return [(piece.name, piece.start, piece.count) for piece in pieces(engine, named)]


def _piece_of_stage_3(zero: Any, name: str, parameter: Any) -> Piece:
    group, offset, each = zero.grad_position[zero.get_param_id(parameter)]
    start = each * torch.distributed.get_rank()
    count = max(0, min(each, parameter.ds_numel - start))  # the rest is padding
    return Piece(name, start, count, zero.fp32_partitioned_groups_flat[group], offset)


def _piece_of_stage_1_2(zero: Any, name: str, parameter: Any) -> Piece | None:
    mapping = parameter._hp_mapping  # None where the parameter lies on other ranks
    if mapping is None:
        return None
    flats = getattr(zero, "single_partition_of_fp32_groups", None)
    flats = zero.fp32_groups_flat_partition if flats is None else flats  # stage 1 in bf16
    lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, lp.start, hp.numel, flats[mapping.param_group_index], hp.start)


def collect(engine: Any, module: nn.Module) -> tuple[dict[str, Any], dict]:
    """What rank 0 says of all shards, and the tensors of this rank's own, as views."""
    named = dict(module.named_parameters())
    names = {id(p): name for name, p in named.items()}
    every = module.named_parameters(remove_duplicate=False)
    state = engine.optimizer.optimizer.state
    tensors, scalars, keys = {}, {}, {MASTER}
    for piece in pieces(engine, named):
        tensors[f"{MASTER}:{piece.name}:{piece.start}"] = piece.of(piece.flat)
        for key, value in state.get(piece.flat, {}).items():
            if isinstance(value, Tensor) and value.shape == piece.flat.shape:
                keys.add(key)
                tensors[f"{key}:{piece.name}:{piece.start}"] = piece.of(value)
            elif value is not None:
                scalars[key] = value
    about = {
        "shapes": {n: list(_shape(p)) for n, p in named.items() if p.requires_grad},
        "keys": sorted(keys),
        "scalars": scalars,
        "groups": _groups(engine, named),
        "tied": {name: names[id(p)] for name, p in every if name not in named},
    }
    return about, tensors


def _groups(engine: Any, named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Settings of the optimizer's groups, each with the names of its parameters."""
    names = {id(p): name for name, p in named.items()}
    zero = engine.optimizer
    stage_3 = engine.zero_optimization_stage() == 3
    groups = [{k: v for k, v in g.items() if k != "params"} for g in zero.optimizer.param_groups]
    for group in groups:
        group["names"] = []
    for number, members in enumerate(zero.fp16_groups if stage_3 else zero.bit16_groups):
        owner = zero.sub_group_to_group_id[number] if stage_3 else number
        groups[owner]["names"] += [names[id(p)] for p in members]
    return groups


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


class Stretches(Protocol):
    """Where saved parameters and moments are read from."""

    def read(self, key: str, name: str, start: int, count: int) -> Tensor:
        """Elements ``start`` to ``start + count`` of a flattened parameter, (n,)."""


class WholeCopies:
    """The same, of the state that one process saved.

    Args:
        state: as Lightning has it; ``about`` gets what :func:`collect` says of shards.
    """

    def __init__(self, *, state: dict[str, Any]) -> None:
        (optimizer,) = state["optimizer_states"]
        names = state["optimizer_names"]
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "names": names[number]}
            for number, group in enumerate(optimizer["param_groups"])
        ]
        flat = [name for members in names for name in members]
        self._found = {MASTER: {name: state["state_dict"][name] for name in flat}}
        scalars: dict[str, Any] = {}
        for number, moments in optimizer["state"].items():
            for key, value in moments.items():
                name = flat[number]
                if isinstance(value, Tensor) and value.shape == self._found[MASTER][name].shape:
                    self._found.setdefault(key, {})[name] = value
                elif value is not None:
                    scalars[key] = value
        self.about = {
            "shapes": {name: list(value.shape) for name, value in self._found[MASTER].items()},
            "keys": sorted(self._found),
            "scalars": scalars,
            "groups": groups,
        }

    def read(self, key: str, name: str, start: int, count: int) -> Tensor:
        """Elements ``start`` to ``start + count`` of a flattened parameter, (n,)."""
        return self._found[key][name].flatten()[start : start + count]


def _whole(files: Stretches, key: str, name: str, shape: list[int]) -> Tensor:
    """A parameter as it was before it was cut."""
    return files.read(key, name, 0, torch.Size(shape).numel()).view(shape)


def restore(
    engine: Any, named: Mapping[str, nn.Parameter], about: dict[str, Any], files: Stretches
) -> None:
    """Fill masters, moments and the parameters computed with; every rank reads only its share.

    No parameter is gathered yet, small ones that stay whole either: the first pass does that.

    Raises:
        UsageError: the saved parameters are not those of this run.
    """
    _check_shapes(named, about["shapes"])
    zero, stage_3 = engine.optimizer, engine.zero_optimization_stage() == 3
    for piece in pieces(engine, named):
        _fill(piece, zero.optimizer.state[piece.flat], about, files)
        if stage_3:
            local = named[piece.name].ds_tensor.data.view(-1)  # type: ignore[attr-defined]
            local[: piece.count].copy_(piece.of(piece.flat))
    for group, saved in zip(zero.optimizer.param_groups, about["groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "names"})
    if not stage_3:
        zero.update_lp_params()  # whole on every rank, each from the masters of the one that has it


def _check_shapes(named: Mapping[str, nn.Parameter], saved: dict[str, list[int]]) -> None:
    shapes = {name: list(_shape(p)) for name, p in named.items() if p.requires_grad}
    wrong = [name for name in {*shapes, *saved} if shapes.get(name) != saved.get(name)]
    if wrong:
        name = min(wrong)
        raise UsageError(
            f"the saved state is of other parameters than this run's: {name} is "
            f"{saved.get(name, 'absent')} there and {shapes.get(name, 'absent')} here"
        )


def _fill(
    piece: Piece, values: dict[str, Any], about: dict[str, Any], files: Stretches
) -> None:
    """Copy what was saved of a piece into its master and moments, which may not be there yet."""
    for key in about["keys"]:
        if key != MASTER and key not in values:
            values[key] = torch.zeros_like(piece.flat)
        target = piece.of(piece.flat if key == MASTER else values[key])
        target.copy_(files.read(key, piece.name, piece.start, piece.count))
    values.update({key: _copied(value) for key, value in about["scalars"].items()})


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def unsharded(about: dict[str, Any], files: Stretches) -> Iterator[tuple[str, Tensor]]:
    """Every trained parameter whole, one after the other, in fp32."""
    for name, shape in about["shapes"].items():
        yield name, _whole(files, MASTER, name, shape)


def optimizer_state(about: dict[str, Any], files: Stretches) -> dict[str, Any]:
    """The state of the plain torch optimizer that one process with whole copies would have."""
    groups, state, number = [], {}, 0
    for group in about["groups"]:
        names = group["names"]
        settings = {key: value for key, value in group.items() if key != "names"}
        groups.append({**settings, "params": list(range(number, number + len(names)))})
        for name in names:
            keys = [key for key in about["keys"] if key != MASTER]
            found = {key: _whole(files, key, name, about["shapes"][name]) for key in keys}
            state[number] = found | {k: _copied(v) for k, v in about["scalars"].items()}
            number += 1
    return {"state": {k: v for k, v in state.items() if v}, "param_groups": groups}
