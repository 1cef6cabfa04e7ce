"""One rank of slurm/check.sh: versions, an all-reduce, the shared disk; the first rank reports."""

import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import distributed

PACKAGES = ("torch", "deepspeed", "lightning", "transformers", "safetensors")
LEAST_FREE_GB = 10
ROUNDS = 5


def main() -> int:
    """Check, print, and return 0 if everything is right."""
    folder = Path(sys.argv[1])
    rank, ranks, local = join()
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    problems = [*versions(ranks), *all_reduce(device, rank, ranks), *disk(folder, rank, ranks)]
    if rank == 0:
        print("\n".join(f"WRONG: {p}" for p in problems) or "everything is right", flush=True)
    distributed.destroy_process_group()
    return 1 if problems else 0


def join() -> tuple[int, int, int]:
    """Meet the other ranks, started by srun or by torchrun."""
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    for name, slurm in names.items():
        os.environ.setdefault(name, os.environ.get(slurm, ""))
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return distributed.get_rank(), distributed.get_world_size(), local


def versions(ranks: int) -> list[str]:
    """Every rank has the same software."""
    mine = {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
    mine["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found: list[dict[str, str]] = [{}] * ranks
    distributed.all_gather_object(found, {"host": platform.node(), **mine})
    if distributed.get_rank() == 0:
        print(f"{ranks} ranks on {len({f['host'] for f in found})} hosts: {mine}", flush=True)
    return [
        f"{f['host']} has {name} {f[name]}, {found[0]['host']} has {found[0][name]}"
        for f in found
        for name in mine
        if f[name] != found[0][name]
    ]


def all_reduce(device: torch.device, rank: int, ranks: int) -> list[str]:
    """The sum is right on every rank; prints the bus rate, as nccl-tests defines it."""
    values = 1 << (28 if device.type == "cuda" else 20)
    wanted = ranks * (ranks + 1) / 2
    spent_s = 0.0
    for turn in range(ROUNDS + 1):
        x = torch.full((values,), rank + 1.0, device=device)
        distributed.barrier()
        begun = time.perf_counter()
        distributed.all_reduce(x)
        right = bool((x == wanted).all())  # waits for the device too
        spent_s += time.perf_counter() - begun if turn else 0.0  # the first one warms up
        if not right:
            return [f"rank {rank} has a wrong sum: {x[0].item()} instead of {wanted}"]
    bus_gb_s = 2 * (ranks - 1) / ranks * 4 * values * ROUNDS / spent_s / 1e9
    if rank == 0:
        print(f"all-reduce of {4 * values / 1e6:.0f} MB: {bus_gb_s:.2f} GB/s a rank", flush=True)
    return []


def disk(folder: Path, rank: int, ranks: int) -> list[str]:
    """What one rank writes the others read; prints the rate at which it got to the disk."""
    path, block = folder / f".check-{os.environ['MASTER_PORT']}", os.urandom(1 << 26)
    if rank == 0:
        begun = time.perf_counter()
        with open(path, "wb") as file:
            file.write(block)
            os.fsync(file.fileno())
        rate = len(block) / (time.perf_counter() - begun) / 1e6
        free_gb = shutil.disk_usage(folder).free / 1e9
        print(f"{folder}: {rate:.0f} MB/s to disk, {free_gb:.0f} GB free", flush=True)
    distributed.barrier()
    seen = path.is_file() and path.stat().st_size == len(block)
    distributed.barrier()
    if rank == 0:
        path.unlink()
        if free_gb < LEAST_FREE_GB:
            return [f"{folder} has {free_gb:.1f} GB free, less than {LEAST_FREE_GB}"]
    return [] if seen else [f"rank {rank} of {ranks} does not see what rank 0 wrote in {folder}"]


if __name__ == "__main__":
    sys.exit(main())
