"""Runs that were cut, as they lie on a disk: what one process leaves, and what many ranks leave."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from aqaa.runtime.checkpoint import StateFiles
from aqaa.states import SHARDED, seal, step_folder
from aqaa.storage import sha256_file, write_json


def save(run: Path, start: Path, step: int, state: dict[str, Any]) -> None:
    write_json(run / "parents.json", {"model": {"path": str(start)}})
    files = StateFiles(keep=3)
    files.save_checkpoint(state, step_folder(run / "checkpoints", step))
    files.writer.wait()


def save_plain(run: Path, start: Path, step: int, weights: dict[str, Tensor]) -> None:
    named = {f"decoder.{name}": tensor for name, tensor in weights.items()}
    save(run, start, step, {"global_step": step, "state_dict": named, "optimizer_states": []})


def save_sharded(
    run: Path, start: Path, step: int, weights: dict[str, Tensor], ranks: int
) -> None:
    """As so many ranks leave it: cut anywhere, a file a rank, a moment beside every master."""
    named = {f"decoder.{name}": tensor for name, tensor in weights.items()}
    about = {"shapes": {name: list(tensor.shape) for name, tensor in named.items()}}
    save(run, start, step, {"global_step": step, "state_dict": {}, SHARDED: about})
    folder = step_folder(run / "checkpoints", step)
    for rank in range(ranks):
        parts = {}
        for name, tensor in named.items():
            each = -(-tensor.numel() // ranks)
            part = tensor.flatten()[rank * each : (rank + 1) * each]
            if len(part):
                parts[f"fp32:{name}:{rank * each}"] = part.clone()
                parts[f"exp_avg:{name}:{rank * each}"] = -part
        save_file(parts, folder / f"shard_{rank:05d}.safetensors")
    reseal(folder)


def reseal(folder: Path) -> None:
    """Write the manifest of a state for what lies there now."""
    (folder / "MANIFEST.sha256").unlink()
    lines = [f"{sha256_file(p)}  {p.name}" for p in sorted(folder.iterdir())]
    writing = folder.with_name(".writing")
    folder.rename(writing)
    seal(writing, folder, lines)
