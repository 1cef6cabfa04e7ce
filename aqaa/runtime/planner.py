"""`aqaa plan VERB …`: what a training needs and how long it takes, before a job is queued.

Stages of the backbone are planned here, those of the small networks in ``planner_organ.py``.

It composes the very config the verb would run, measures the backbone on the meta device and does
arithmetic: memory of a rank, traffic, speed, checkpoints, what limits it. What cannot fit, or saves
more often than a save takes, is refused with the nearest setting that can.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqaa.errors import UsageError
from aqaa.runtime.planner_memory import Memory, Placement, host_memory, memory, state_bytes
from aqaa.runtime.planner_time import Hardware, Timing, timing

PLANNED = ("pretrain", "sft", "dpo")
_MOST_NODES = 4096
_PADDED_TOKENS = 4096  # of a row that is not packed; its true length depends on the data


@dataclass(frozen=True)
class Plan:
    """Everything that was found out about one training; ``overrides`` are what it is to be told."""

    verb: str
    overrides: tuple[str, ...]
    shape: Any
    place: Placement
    gpu: Hardware
    nodes: int
    gpus_per_node: int
    memory: Memory
    timing: Timing
    steps: int
    save_every_s: float
    model: str  # folder that the training would take its backbone from

    @property
    def tokens(self) -> int:
        """Ids the whole training sees."""
        return self.steps * self.timing.step_tokens

    @property
    def hours(self) -> float:
        """Wall time of all steps."""
        return self.steps * self.timing.step_s / 3600

    @property
    def saving_share(self) -> float:
        """Part of the time in which a state is being written; a save begins between two steps."""
        return self.timing.checkpoint_s / max(self.save_every_s, self.timing.step_s)

    def record(self) -> dict[str, Any]:
        """The plan as plain values."""
        shape, place, time = self.shape, self.place, self.timing
        return {
            "verb": self.verb,
            "gpu": self.gpu.name,
            "nodes": self.nodes,
            "gpus_per_node": self.gpus_per_node,
            "zero_stage": place.stage,
            "checkpointing": place.checkpointing,
            "rows": place.rows,
            "row_tokens": place.row_tokens,
            "accumulate": place.accumulate,
            "parameters": shape.whole.parameters,
            "trainable": shape.whole.trainable,
            "state_bytes": state_bytes(shape, place),
            "rank_bytes": self.memory.kinds(),
            "peak_bytes": self.memory.peak,
            "peak_at": self.memory.moment,
            "usable_bytes": self.gpu.usable_bytes,
            "host_bytes": host_memory(shape, place),
            "gathered_bytes": time.gathered_bytes,
            "reduced_bytes": time.reduced_bytes,
            "seconds": {
                "compute": time.compute_s,
                "memory": time.memory_s,
                "network": time.network_s,
                "step": time.step_s,
            },
            "limit": time.limit,
            "step_tokens": time.step_tokens,
            "tokens_per_s": time.tokens_per_s,
            "mfu": time.mfu,
            "steps": self.steps,
            "tokens": self.tokens,
            "hours": self.hours,
            "checkpoint_bytes": time.checkpoint_bytes,
            "checkpoint_s": time.checkpoint_s,
            "save_every_s": self.save_every_s,
            "saving_share": self.saving_share,
        }


def plan(
    *,
    verb: str,
    overrides: Sequence[str],
    gpu: Mapping[str, Any],
    backbone: Mapping[str, Any] | None = None,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    model: str | None = None,
    table_rows: int = 74752,
    rows: int | None = None,
    row_tokens: int | None = None,
    tokens: float | None = None,
    out: str | None = None,
    as_json: bool = False,
) -> None:
    """Print the plan of a training (`aqaa plan`).

    Args:
        verb: the stage.
        overrides: of that verb.
        gpu: fields of :class:`Hardware`.
        backbone: sizes of a Step-1.
        nodes: machines; None as the verb's trainer says.
        gpus_per_node: ranks on each; None as the verb's trainer says.
        model: folder of another causal LM's config.json.
        table_rows: of a backbone named by its sizes.
        rows: sequences in a forward pass of a rank; None as the verb's data says.
        row_tokens: ids in a sequence; None as the verb's data says.
        tokens: ids to train on; None those of run.steps steps.
        out: write an sbatch file here.
        as_json: print one JSON object instead of tables.

    Raises:
        UsageError: the settings do not fit one another or the hardware.
    """
    from aqaa.runtime.planner_organ import ORGANS, plan_organ
    from aqaa.runtime.planner_show import show, write_sbatch

    hardware = Hardware(**gpu)
    if verb in ORGANS:
        backbones = {"backbone": backbone, "model": model, "row_tokens": row_tokens,
                     "tokens": tokens}  # fmt: skip
        if given := [name for name, value in backbones.items() if value is not None]:
            raise UsageError(f"a {verb} has no {given[0]}=: its size is {verb}=, its batch rows=")
        plan_organ(verb=verb, overrides=overrides, gpu=hardware, nodes=nodes, rows=rows, out=out,
                   gpus_per_node=gpus_per_node, as_json=as_json)  # fmt: skip
        return
    if verb not in PLANNED:
        raise UsageError(f"{verb} cannot be planned: there are {', '.join((*PLANNED, *ORGANS))}")
    found = make_plan(
        verb, overrides, gpu=hardware, backbone=backbone, nodes=nodes, model=model,
        gpus_per_node=gpus_per_node, table_rows=table_rows, rows=rows, row_tokens=row_tokens,
        tokens=tokens,
    )  # fmt: skip
    refuse_what_does_not_fit(found)
    refuse_endless_saving(found)
    if out is not None and {rows, row_tokens} != {None} and not _told(found):
        raise UsageError(
            f"out={out} would train other rows than rows= and row_tokens= plan: the data of {verb} "
            f"are not packed here, so leave both out, or pack them by data.row_tokens=N"
        )
    if out is not None:
        _check_model(found, out)
    if out is not None and not _launched(found):
        raise UsageError(
            f"out={out} would train in trainer=zero3_nodes, which slurm/launch.sh takes where none "
            f"is named, and this plan is of another: say trainer=zero3_nodes, or the one you mean"
        )
    if as_json:
        print(json.dumps(found.record()))
    else:
        show(found)
    if out is not None:
        write_sbatch(found, Path(out))


def _check_model(plan: Plan, out: str) -> None:
    """Refuse to queue a training of another backbone than was planned, where it lies there."""
    from aqaa.backbone import shape as sizes

    if not (Path(plan.model) / "config.json").is_file():
        return
    there = sizes.shape_of(sizes.read_config(plan.model), dtype=_dtype(plan.place), adapter=None)
    if (there.table, there.layers, there.width) != (
        plan.shape.table, plan.shape.layers, plan.shape.width,
    ):  # fmt: skip
        raise UsageError(
            f"out={out} would train {plan.model}, of {there.whole.parameters:,} parameters, and "
            f"this plan is of {plan.shape.whole.parameters:,}: plan without backbone= and model=, "
            f"or name the planned one by parents.model="
        )


def _told(plan: Plan) -> bool:
    """Whether a training can be told what rows it was planned with."""
    return any(word.startswith(("data.rows=", "data.row_tokens=")) for word in plan.overrides)


def _launched(plan: Plan) -> bool:
    """Whether the launcher, which adds its own trainer where none is named, trains as planned."""
    named = any(word.startswith("trainer=") for word in plan.overrides)
    return named or (plan.place.stage > 0 and not plan.place.host)


def make_plan(
    verb: str,
    overrides: Sequence[str] = (),
    *,
    gpu: Hardware,
    backbone: Mapping[str, Any] | None = None,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    model: str | None = None,
    table_rows: int = 74752,
    rows: int | None = None,
    row_tokens: int | None = None,
    tokens: float | None = None,
) -> Plan:
    """The plan, whether it fits or not; arguments as of :func:`plan`."""
    from aqaa.backbone import shape as sizes

    cfg = composed(verb, overrides, nodes, gpus_per_node)
    counts = {"rows": rows, "row_tokens": row_tokens, "table_rows": table_rows, "tokens": tokens}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: there must be one at least")
    if cfg.data.get("row_tokens"):  # a budget of ids takes other steps with other rows
        cfg.data.update({"rows": rows or cfg.data.rows,
                         "row_tokens": row_tokens or cfg.data.row_tokens})  # fmt: skip
    place = placement(cfg, rows=rows, row_tokens=row_tokens)
    if backbone:
        config = sizes.step1_config(backbone, table_rows=table_rows)
    else:
        config = sizes.read_config(_folder(model or str(cfg.stage.model)))
    adapter = _adapter(cfg)
    shape = sizes.shape_of(config, dtype=_dtype(place), adapter=adapter)
    per_node = int(cfg.trainer.devices)
    time = timing(shape, place, gpu, gpus_per_node=per_node)
    steps = int(cfg.run.steps) if tokens is None else math.ceil(tokens / time.step_tokens)
    told = {"data.rows": rows, "data.row_tokens": row_tokens} if cfg.data.get("row_tokens") else {}
    told["run.steps"] = None if tokens is None else steps
    return Plan(
        verb=verb,
        overrides=(*overrides, *(f"{name}={n}" for name, n in told.items() if n is not None)),
        shape=shape,
        place=place,
        gpu=gpu,
        nodes=int(cfg.trainer.num_nodes),
        gpus_per_node=per_node,
        memory=memory(shape, place),
        timing=time,
        steps=steps,
        save_every_s=float(cfg.run.save_every_s),
        model=str(cfg.stage.model),
    )


def placement(cfg: Any, *, rows: int | None, row_tokens: int | None) -> Placement:
    """How the composed config of a verb would spread the training out."""
    trainer = cfg.trainer
    ranks = int(trainer.num_nodes) * int(trainer.devices)
    strategy = trainer.strategy
    zero = _zero(strategy)
    half = str(trainer.precision).startswith(("bf16", "16")) and (
        zero["stage"] > 0 or str(trainer.precision).endswith("true")
    )
    return Placement(
        ranks=ranks,
        weight_bytes=2 if half else 4,
        autocast=not half and "mixed" in str(trainer.precision),
        rows=_rows(cfg) if rows is None else rows,
        row_tokens=row_tokens or cfg.data.get("row_tokens") or _PADDED_TOKENS,
        accumulate=int(trainer.accumulate_grad_batches),
        checkpointing=bool(cfg.stage.activation_checkpointing),
        host=str(trainer.accelerator) == "cpu",
        **zero,
    )


def refuse_what_does_not_fit(plan: Plan) -> None:
    """Raise, with the nearest setting that fits, if a rank needs more than it has."""
    room = plan.gpu.usable_bytes
    if plan.memory.peak <= room:
        return
    most = max(plan.memory.kinds().items(), key=lambda kind: kind[1])
    need = f"{plan.memory.peak / 1e9:.1f} GB a rank in the {plan.memory.moment}"
    had = f"{room / 1e9:.0f} GB that a {plan.gpu.name} leaves to it"
    raise UsageError(
        f"{plan.verb} on {plan.nodes} x {plan.gpus_per_node} ranks needs {need}, more than the "
        f"{had} (most for {most[0]}, {most[1] / 1e9:.1f} GB): {nearest_fit(plan)}"
    )


def refuse_endless_saving(plan: Plan) -> None:
    """Raise if one save takes until the next one: training would wait for the disk."""
    if plan.saving_share <= 1:
        return
    took = plan.timing.checkpoint_s
    raise UsageError(
        f"run.save_every_s={plan.save_every_s:g} is less than the {took:.0f} s that a saved state "
        f"of {plan.timing.checkpoint_bytes / 1e9:,.0f} GB takes on {plan.nodes} nodes, so training "
        f"would wait for the disk: the nearest that fits is run.save_every_s={math.ceil(took)}, "
        f"and ten times as much is wise"
    )


def nearest_fit(plan: Plan) -> str:
    """A sentence with the least change that makes a plan fit."""
    for words, place in _changes(plan):
        if memory(plan.shape, place).peak <= plan.gpu.usable_bytes:
            return f"the nearest that fits is {words}"
    return f"no number of nodes up to {_MOST_NODES} helps: choose a smaller backbone"


def _changes(plan: Plan) -> Iterator[tuple[str, Placement]]:
    """Other placements, the smallest changes first."""
    place = plan.place
    kinder = [("", place)]
    if not place.checkpointing:
        kinder.append(("stage.activation_checkpointing=true", place.with_(checkpointing=True)))
    for rows in range(place.rows - 1, 0, -1):
        kinder.append((f"rows={rows}", place.with_(rows=rows)))
    for parts in (2, 4, 8):
        tokens = place.row_tokens // parts
        kinder.append((f"row_tokens={tokens}", place.with_(row_tokens=max(1, tokens))))
    if place.rows > 1 and not place.checkpointing:
        kinder.append(
            ("stage.activation_checkpointing=true rows=1", place.with_(checkpointing=True, rows=1))
        )
    yield from kinder[1:]
    slim = [k for k in kinder if k[1].checkpointing and k[1].row_tokens == place.row_tokens]
    for words, other in (kinder[0], slim[-1] if slim else kinder[0]):
        for nodes in range(plan.nodes + 1, _MOST_NODES + 1):
            more = f"nodes={nodes} {words}".strip()
            yield more, other.with_(ranks=nodes * plan.gpus_per_node)
            if place.stage == 0:
                break


def composed(verb: str, overrides: Sequence[str], nodes: int | None, gpus: int | None) -> Any:
    """The checked config of a verb, with as many ranks as the launcher would give it."""
    from aqaa.runtime.compose import bind_targets, compose
    from aqaa.runtime.run import check_trainer

    wanted = {"trainer.num_nodes": nodes, "trainer.devices": gpus}
    for name, value in wanted.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: there must be one at least")
    placed = (f"{name}={n}" for name, n in wanted.items() if n is not None)
    cfg = compose(verb, [*overrides, *placed])
    bind_targets(cfg)
    check_trainer(cfg.trainer)
    return cfg


def _folder(name: str) -> str:
    if not (Path(name) / "config.json").is_file():
        raise UsageError(
            f"{name} does not exist yet, so its size is not known: name it with backbone=step1_130b"
        )
    return name


def _dtype(place: Placement) -> Any:
    import torch

    return torch.bfloat16 if place.weight_bytes == 2 else torch.float32


def _adapter(cfg: Any) -> dict[str, Any] | None:
    node = cfg.get("adapter")
    if not node or "rank" not in node:
        return None
    targets = node.targets if isinstance(node.targets, str) else list(node.targets)
    return {"rank": int(node.rank), "targets": targets}


def _rows(cfg: Any) -> int:
    data = cfg.data
    if data.get("row_tokens"):
        return int(data.rows)
    if "tasks" in data and data.tasks:
        return max(int(task.batch) for task in data.tasks.values())
    batch = int(data.get("batch", 1))
    return 2 * batch if cfg.stage._target_.endswith(".Dpo") else batch  # a pair is two answers


def _zero(strategy: Any) -> dict[str, Any]:
    """Stage, buckets and offload of a trainer's strategy; one by name trains whole copies."""
    if isinstance(strategy, str):
        return {"stage": 0}
    offload = strategy.get("offload", "none")
    return {
        "stage": int(strategy.stage),
        "offload_optimizer": offload != "none",
        "offload_weights": offload == "all",
        "bucket_values": int(strategy.reduce_bucket_elements),
        "live_values": int(strategy.live_elements),
    }
