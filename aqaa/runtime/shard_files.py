"""The shard files of a saved state, and the list of what each holds: a rank reads what it needs.

A tensor of a shard file is named ``KEY:PARAMETER:START``, as :mod:`aqaa.runtime.shards` cuts them;
a file holds the same stretches for every KEY. ``shards.json`` lists them by parameter in runs
[FIRST, START, COUNT, TIMES]: from file FIRST on, TIMES files hold COUNT elements each, from START
on. ZeRO-3 cuts every parameter evenly, so that it needs two runs on any number of ranks.

Letters: n elements of a stretch.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.ranks import rank, ranks

LIST = "shards.json"
Runs = Mapping[str, Sequence[Sequence[int]]]
Stretch = tuple[str, int, int]  # of a parameter: its name, first element, number of elements


def shard_name(number: int) -> str:
    """The file of the rank ``number`` that wrote it."""
    return f"shard_{number:05d}.safetensors"


def held(tensors: Iterable[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """First element and number of elements of every parameter in a shard.

    Args:
        tensors: names in a shard file, each with its number of elements.
    """
    split = ((full.split(":"), count) for full, count in tensors)
    return {name: (int(start), count) for (_, name, start), count in split}


def runs(shards: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[list[int]]]:
    """What ``shards.json`` says of shards, each told by :func:`held`, in their files' order."""
    found: dict[str, list[list[int]]] = {}
    for number, names in enumerate(shards):
        for name, (start, count) in names.items():
            known = found.setdefault(name, [])
            if known and _goes_on(known[-1], number, start, count):
                known[-1][3] += 1
            else:
                known.append([number, start, count, 1])
    return found


def _goes_on(run: Sequence[int], number: int, start: int, count: int) -> bool:
    first, begin, each, times = run
    return (number, start, count) == (first + times, begin + each * times, each)


def needed(listed: Runs, stretches: Iterable[Stretch], shards: Sequence[int]) -> list[int]:
    """Numbers of the shards that this rank reads: what holds something of the stretches.

    Besides, ranks take turns with shards that hold nothing: every byte of a state is looked at.
    """
    found = {
        first + place
        for name, start, count in stretches
        for first, begin, each, times in listed.get(name, ())
        for place in range(
            max(0, (start - begin) // each), min(times, -((begin - start - count) // each))
        )
    }
    every = (run for known in listed.values() for run in known)
    empty = {*shards}.difference(*(range(run[0], run[0] + run[3]) for run in every))
    return sorted({*found, *sorted(empty)[rank() :: ranks()]})


class ShardFiles:
    """Some shards of one saved state, in memory, read in stretches.

    Args:
        shards: of each its tensors, by their names in the file.
    """

    def __init__(self, *, shards: Iterable[Mapping[str, Tensor]]) -> None:
        self._stretches: dict[tuple[str, str], list[tuple[int, int, Tensor]]] = {}
        for full, part in (item for shard in shards for item in shard.items()):
            key, name, start = full.split(":")
            entry = (int(start), int(start) + part.numel(), part)
            self._stretches.setdefault((key, name), []).append(entry)

    def read(self, key: str, name: str, start: int, count: int) -> Tensor:
        """Elements ``start`` to ``start + count`` of a flattened parameter, (n,).

        Raises:
            UsageError: no shard holds some of them.
        """
        parts, end, at = [], start + count, start
        for begin, stop, part in sorted(self._stretches.get((key, name), []), key=lambda e: e[0]):
            if begin <= at < stop and at < end:
                parts.append(part[at - begin : min(stop, end) - begin])
                at = min(stop, end)
        if at != end:
            raise UsageError(f"the saved shards lack {key} of {name}: they are of another run")
        return torch.cat(parts) if len(parts) != 1 else parts[0]
