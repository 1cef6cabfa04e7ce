"""DeepSpeed's engine as a few of 128 ranks build it, on one machine: what each holds, as JSON.

``python -m tests.runtime.many_ranks FILE RANKS RANK ...``: strategy and trainer are those of a
paper's preset, the network is small, collectives return at once. Each rank is a fork.

Letters: n elements of a stretch.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

PRESET = ("sft", ["preset=paper/sft_1"])


def network() -> nn.Module:
    """One parameter that is cut well, and some that are smaller than the ranks are many."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 700, bias=False), nn.LayerNorm(300), nn.Linear(7, 3))


def seen(rank: int, world: int) -> dict[str, Any]:
    """What rank ``rank`` of ``world`` gets from DeepSpeed, and what of it our shards find."""
    from omegaconf import OmegaConf
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from aqaa.runtime import shards
    from aqaa.runtime.compose import compose
    from aqaa.runtime.strategy import ShardedStrategy, _skip_shared_memory_op

    cfg = compose(*PRESET)
    known = OmegaConf.to_container(cfg.trainer.strategy, resolve=True)
    assert isinstance(known, dict)
    settings = {str(key): value for key, value in known.items() if key != "_target_"}
    strategy = ShardedStrategy(**{**settings, "device": "cpu"})
    _skip_shared_memory_op()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    import deepspeed

    deepspeed.init_distributed(dist_backend="fake")
    module = network()
    named = dict(module.named_parameters())
    plain = {name: p.detach().clone().flatten() for name, p in named.items()}
    config = {
        **strategy.config,
        "bf16": {"enabled": True},
        "gradient_accumulation_steps": int(cfg.trainer.accumulate_grad_batches),
    }
    engine, _, _, _ = deepspeed.initialize(
        args=argparse.Namespace(device_rank=0),
        config=config,
        model=module,
        model_parameters=list(module.parameters()),
        optimizer=torch.optim.AdamW(module.parameters()),
        dist_init_required=False,
    )
    found = shards.pieces(engine, named)
    _, tensors = shards.collect(engine, module)
    return {
        "batches": engine.train_batch_size(),
        "ranks": engine.dp_world_size,
        "flat": sum(flat.numel() for flat in engine.optimizer.fp32_partitioned_groups_flat),
        "kept_whole": sorted(n for n, p in named.items() if p.ds_persist),  # type: ignore[attr-defined]
        "pieces": [[p.name, p.start, p.count] for p in found],
        "equal": all(
            p.of(p.flat).equal(plain[p.name][p.start : p.start + p.count].bfloat16().float())
            for p in found
        ),
        "keys": list(tensors),
    }


def main(path: Path, ranks: list[int], world: int) -> None:
    """One fork a rank, so that libraries are imported once."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401

    import aqaa.runtime.strategy  # noqa: F401

    for rank in ranks:
        if not (pid := os.fork()):
            part = path.with_suffix(f".{rank}")
            part.write_text(json.dumps(seen(rank, world)))
            os._exit(0)
        os.waitpid(pid, 0)
    found = {rank: json.loads(path.with_suffix(f".{rank}").read_text()) for rank in ranks}
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[3:]], int(sys.argv[2]))
