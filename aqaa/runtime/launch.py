"""Several processes of one run, started by Lightning, torchrun or srun: rank 0 decides first.

Before any process group exists a rank is what the environment says. Lightning's own launcher starts
the other ranks from a rank 0 that has decided already; torchrun and srun start all at once, and the
others wait at the store of their launch.
"""

import os
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

_calls = count()
_PATIENCE_S = 300.0  # as long as the store waits
_stores: list[Any] = []  # rank 0 serves its store from its own process, as long as it lives


def rank_told() -> int:
    """Number of this process as its launcher has told it, 0 if none has."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def is_first() -> bool:
    """Whether this process is rank 0, the one that writes."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def decided(decide: Callable[[], bool], *, looks: bool = False) -> bool:
    """What rank 0 decides, on every rank; the others go on only when it has.

    Args:
        decide: asked on rank 0 alone; may write. What it raises ends all ranks.
        looks: it only looks at files; a rank that Lightning's launcher started sees those of rank
            0, on whose machine it is, and asks for itself.
    """
    found = _store()
    if found is None:
        # A rank started by Lightning's launcher is there because the first one went on.
        return decide() if looks or is_first() else False
    store, ranks = found
    key = f"aqaa/decided/{next(_calls)}"
    if not is_first():
        return _hear(store, key)
    try:
        answer = decide()
    except BaseException:
        store.set(key, "error")
        raise
    store.set(key, str(answer))
    until = time.monotonic() + _PATIENCE_S
    # Rank 0 may leave after a yes, and its store with it: not before all have heard.
    while answer and store.add(f"{key}/heard", 0) < ranks - 1 and time.monotonic() < until:
        time.sleep(0.02)
    return answer


def _hear(store: Any, key: str) -> bool:
    """What rank 0 has decided."""
    try:
        answer = store.get(key).decode()
        if answer == "error":  # rank 0 says what is wrong; a launcher may kill it once we end
            store.get(f"{key}/never")
        store.add(f"{key}/heard", 1)
    except RuntimeError:  # rank 0 is gone, and its store with it
        answer = "error"
    if answer == "error":
        raise SystemExit(2)
    return bool(answer == "True")


def leave() -> None:
    """Leave the other ranks, if there are any.

    An interpreter that ends while its process group lives may be aborted by the group's threads,
    and its exit code with it.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _store() -> tuple[Any, int] | None:
    """Where the ranks of one torchrun or srun leave word for one another, and how many they are."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & os.environ.keys():
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from torch.distributed import rendezvous

    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            place = kind()
            if place.world_size() == 1:
                return None
            url = f"tcp://{place.main_address}:{place.main_port}"
            store = next(rendezvous(url, place.global_rank(), place.world_size()))[0]
            _stores.append(store)
            return store, place.world_size()
    return None
