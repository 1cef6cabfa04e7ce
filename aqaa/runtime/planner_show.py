"""A plan for people: tables on the terminal, and the file that queues it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aqaa.runtime.planner import Plan
from aqaa.runtime.planner_memory import host_memory, state_bytes
from aqaa.storage import write_text

_SPARE_TIME = 1.15  # starts, checkpoints, validation
_LONGEST_H = 24.0  # of one job; the rest follows by requeueing


def show(plan: Plan) -> None:
    """Print the plan."""
    display(sections(plan))


def display(sections_: Mapping[str, list[tuple[str, str]]]) -> None:
    """Print rows of (what, how much) by heading."""
    console = Console(highlight=False)
    for title, rows in sections_.items():
        table = Table(title=title, title_justify="left", show_header=False, min_width=72)
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)


def sections(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """What is shown: rows of (what, how much) by heading."""
    shape, place, time = plan.shape, plan.place, plan.timing
    state = state_bytes(shape, place)
    zero = f"ZeRO-{place.stage}" if place.stage else "whole copies"
    kept = ", layers recomputed" if place.checkpointing else ""
    return {
        f"{plan.verb} on {plan.nodes} x {plan.gpus_per_node} {plan.gpu.name}": [
            ("parameters", f"{shape.whole.parameters:,}"),
            ("trained", f"{shape.whole.trainable:,}"),
            ("weights, gradients, AdamW in all", f"{size(state)}"),
            ("placement", f"{zero}, {place.weight_bytes}-byte weights{kept}"),
            ("forward pass of a rank", f"{place.rows} x {place.row_tokens:,} ids"),
            ("passes a step", f"{place.accumulate}"),
        ],
        "memory of a rank": [
            *((name, size(value)) for name, value in plan.memory.kinds().items()),
            (f"peak, in the {plan.memory.moment}", size(plan.memory.peak)),
            ("usable", size(plan.gpu.usable_bytes)),
            *((f"in its host: {n}", size(v)) for n, v in host_memory(shape, place).items() if v),
        ],
        "one step": [
            ("ids", f"{time.step_tokens:,}"),
            ("received in gathers, a rank", size(time.gathered_bytes)),
            ("sent in reductions, a rank", size(time.reduced_bytes)),
            ("compute / network / memory", _times(plan)),
            ("limit", time.limit + _advice(plan)),
            ("ids a second", f"{time.tokens_per_s:,.0f}"),
            ("MFU", f"{100 * time.mfu:.1f} %"),
        ],
        "the whole training": [
            ("steps", f"{plan.steps:,}"),
            ("ids", f"{plan.tokens:,}"),
            ("wall time", f"{plan.hours:,.1f} h ({plan.hours / 24:,.1f} days)"),
            ("checkpoint", f"{size(time.checkpoint_bytes)} in {time.checkpoint_s:.0f} s"),
            ("saving", f"{100 * plan.saving_share:.1f} % of the time, beside the training"),
            ("saved every (run.save_every_s)", f"{plan.save_every_s:,g} s"),
        ],
    }


def size(count: int) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count:,} B"


def write_sbatch(plan: Plan, path: Path) -> None:
    """Write a file for ``sbatch`` that runs the planned command on the planned machines."""
    notes = [
        f"Planned: {plan.timing.tokens_per_s:,.0f} ids a second, {plan.hours:,.1f} h in all, "
        f"{size(plan.memory.peak)} of {size(plan.gpu.usable_bytes)} a rank, "
        f"limited by {plan.timing.limit}.",
        f"The backbone that parents.model names has to have {plan.shape.whole.parameters:,} "
        "parameters, an adapter counted.",
    ]
    job = sbatch(plan.verb, plan.overrides, nodes=plan.nodes, gpus_per_node=plan.gpus_per_node,
                 hours=plan.hours, notes=notes)  # fmt: skip
    write_text(path, job)


def sbatch(
    verb: str,
    overrides: Sequence[str],
    *,
    nodes: int,
    gpus_per_node: int,
    hours: float,
    notes: Sequence[str],
) -> str:
    """A job of a verb; ``hours`` without starts, saves and checks, for which some are added."""
    minutes = int(60 * min(_LONGEST_H, max(1.0, _SPARE_TIME * hours)))
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name=aqaa-{verb}",
        f"#SBATCH --nodes={nodes}",
        f"#SBATCH --ntasks-per-node={gpus_per_node}",
        f"#SBATCH --gpus-per-node={gpus_per_node}",
        f"#SBATCH --time={minutes // 60:02d}:{minutes % 60:02d}:00",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --output=slurm-%x-%j.out",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@300",
        *(f"# {note}" for note in notes),
        f"exec bash slurm/launch.sh {shlex.join([verb, *overrides])}",
    ]
    return "\n".join(lines) + "\n"


def _times(plan: Plan) -> str:
    time = plan.timing
    return f"{time.compute_s:.2f} / {time.network_s:.2f} / {time.memory_s:.2f} s"


def _advice(plan: Plan) -> str:
    """What would take a limit away, where it is not the hardware's best use."""
    time, place = plan.timing, plan.place
    if time.limit == "compute" or place.ranks == 1:
        return ""
    if time.limit == "network" and place.stage >= 2:
        needed = place.tokens * time.network_s / time.compute_s
        return f": {needed:,.0f} ids in a forward pass of a rank would hide it"
    return ""
