"""How long saving holds up a step: our copy into kept memory beside torch DCP's async_save.

    python tools/bench/checkpoint.py mib=768 tensors=24 repeats=5 folder=/tmp/bench

Both save the same state in turns, each save begun when the one before is on the disk. The stall is
the wall time until the call returns, the median over the repeats; the first save of each, for which
memory is allocated (ours: before, by the writer's thread), is shown apart. ``equal``: both give the
same bytes back. The last line is JSON.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from aqaa.runtime.checkpoint import StateFiles
from aqaa.states import step_folder

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import machine, told  # noqa: E402


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a call, and what it returned."""
    begun = time.perf_counter()
    value = call()
    return time.perf_counter() - begun, value


def bench(mib: int, tensors: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Save in turns; returns the record."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    group = dist.new_group(backend="gloo")  # with the default group it may abort a training
    state = {f"w{i}": torch.randn(mib * 2**18 // tensors) for i in range(tensors)}
    files = StateFiles(keep=1)
    # As a training does after its first step: the thread takes the memory while steps go on.
    size = sum(tensor.nbytes for tensor in state.values())
    begun = timed(lambda: files.reserve(folder, state_bytes=size, shard_bytes=0, pinned=False))[0]
    taken = begun + timed(files.writer.wait)[0]
    ours: list[float] = []
    peer: list[float] = []
    until_done: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(repeats + 1):
        call = timed(lambda n=number: files.save_checkpoint(state, step_folder(folder / "ours", n)))
        ours.append(call[0])
        until_done["ours"].append(call[0] + timed(files.writer.wait)[0])
        shutil.rmtree(folder / "peer", ignore_errors=True)
        stall, future = timed(
            lambda: dcp.async_save(state, checkpoint_id=folder / "peer", process_group=group)
        )
        peer.append(stall)
        until_done["peer"].append(stall + timed(future.result)[0])
        print(f"save {number}: ours {ours[-1]:.3f} s, DCP {peer[-1]:.3f} s", flush=True)
    copy = {name: tensor.clone() for name, tensor in state.items()}
    plain = min(timed(lambda: [copy[k].copy_(v) for k, v in state.items()])[0] for _ in range(3))
    mine = files.load_checkpoint(folder / "ours")
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(other, checkpoint_id=folder / "peer", process_group=group)
    dist.destroy_process_group()
    stalls = {"ours": statistics.median(ours[1:]), "peer": statistics.median(peer[1:])}
    print(f"first save: ours {ours[0]:.3f} s, DCP, which allocates, {peer[0]:.3f} s")
    print(f"memory of ours: {taken:.3f} s of the thread before it, {begun:.4f} s of stall")
    print(f"one copy into kept memory, nothing else: {plain:.3f} s")
    done = {name: statistics.median(values[1:]) for name, values in until_done.items()}
    print(f"on the disk: ours {done['ours']:.2f} s (hashed, synced), DCP {done['peer']:.2f} s")
    return {
        "bench": "checkpoint",
        "ours": round(stalls["ours"], 4),
        "peer": round(stalls["peer"], 4),
        "unit": f"s of stall, {mib} MiB",
        "ratio": round(stalls["peer"] / stalls["ours"], 2),
        "equal": all(mine[k].equal(v) and other[k].equal(v) for k, v in state.items()),
        "machine": machine(),
        "versions": {"torch": version("torch")},
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if both gave the same bytes back."""
    asked = told("checkpoint", argv, {"mib": "768", "tensors": "24", "repeats": "5", "folder": ""})
    folder = Path(tempfile.mkdtemp(dir=asked["folder"] or None))
    try:
        found = bench(int(asked["mib"]), int(asked["tensors"]), int(asked["repeats"]), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
