"""`aqaa plan tokenizer | vocoder`: what a step needs is measured, the rest is arithmetic.

These networks are small beside a backbone and train as whole copies (DDP), so that memory is what
one rank needs, and traffic one reduction of the gradients.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqaa.errors import UsageError
from aqaa.runtime.measured_step import CLIP_S, MeasuredStep, measure_step
from aqaa.runtime.planner_show import display, sbatch, size
from aqaa.runtime.planner_time import Hardware
from aqaa.signals import GROUP_S, MEL_RATE_HZ, VOCODER_HOP_SAMPLES, VOCODER_RATE_HZ
from aqaa.storage import write_text

ORGANS = ("tokenizer", "vocoder")
_VALUE_BYTES, _MOMENT_BYTES = 4, 8  # weights and gradients in float32; AdamW's two moments
_PROBE_FRAMES = 40  # the widest window of a judge is no longer
_UNBOUNDED_S = 4.0  # of clips that no setting bounds: the walkthrough's questions and answers


@dataclass(frozen=True)
class OrganPlan:
    """Everything that was found out about one training."""

    verb: str
    overrides: tuple[str, ...]
    gpu: Hardware
    nodes: int
    gpus_per_node: int
    rows: int
    row_s: float
    steps: int
    accelerated: bool
    step: MeasuredStep

    @property
    def ranks(self) -> int:
        """Processes, one a GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def parameters(self) -> int:
        """Trained, of all networks."""
        return sum(self.step.parameters.values())

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Of one rank; not all of them are alive at the same moment."""
        return {
            "weights": self.parameters * _VALUE_BYTES,
            "gradients": self.parameters * _VALUE_BYTES,
            "optimizer": self.parameters * _MOMENT_BYTES,
            "running average": self.step.averaged * _VALUE_BYTES,
            "activations": self.rows * self.step.row_bytes,
            "reduction": self.parameters * _VALUE_BYTES if self.ranks > 1 else 0,
        }

    @property
    def peak_bytes(self) -> int:
        """What a rank needs at the worse moment, on the way back or in the optimizer's step."""
        return self.step.peak_bytes(self.rows) + self.bytes_by_kind["reduction"]

    @property
    def compute_s(self) -> float:
        """Products of a step."""
        flops = self.rows * self.step.row_flops
        return flops / (1e12 * self.gpu.tflops * self.gpu.efficiency)

    @property
    def network_s(self) -> float:
        """One reduction of the gradients over all ranks."""
        sent = 2 * (self.ranks - 1) / self.ranks * self.parameters * _VALUE_BYTES
        rate = self.gpu.link_gb_s if self.nodes == 1 else self.gpu.network_gb_s
        return sent / (1e9 * rate * self.gpu.network_share)

    @property
    def hours(self) -> float:
        """Wall time of all steps."""
        return self.steps * max(self.compute_s, self.network_s) / 3600

    @property
    def limit(self) -> str:
        """What a step waits for."""
        return "compute" if self.compute_s >= self.network_s else "network"

    @property
    def state_bytes(self) -> int:
        """Of a saved state: weights, moments and the average."""
        trained = self.parameters * (_VALUE_BYTES + _MOMENT_BYTES)
        return trained + self.step.averaged * _VALUE_BYTES

    def record(self) -> dict[str, Any]:
        """The plan as plain values."""
        names = ("verb", "nodes", "gpus_per_node", "rows", "row_s", "steps", "parameters",
                 "peak_bytes", "compute_s", "network_s", "limit", "hours",
                 "state_bytes")  # fmt: skip
        return {name: getattr(self, name) for name in names} | {
            "gpu": self.gpu.name,
            "usable_bytes": self.gpu.usable_bytes,
            "networks": self.step.parameters,
            "rank_bytes": self.bytes_by_kind,
            "row_flops": self.step.row_flops,
            "sound_s_per_step": self.rows * self.ranks * self.row_s,
        }


def plan_organ(
    *,
    verb: str,
    overrides: Sequence[str],
    gpu: Hardware,
    nodes: int | None,
    gpus_per_node: int | None,
    rows: int | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Print the plan; arguments as of :func:`aqaa.runtime.planner.plan`.

    Raises:
        UsageError: the settings do not fit one another or the hardware.
    """
    told = () if rows is None else (f"data.batch={rows}",)
    found = make_organ_plan(
        verb, (*overrides, *told), gpu=gpu, nodes=nodes, gpus_per_node=gpus_per_node
    )
    refuse_what_does_not_fit(found)
    named = any(word.startswith("trainer=") for word in overrides)
    if out is not None and not named and not found.accelerated:
        raise UsageError(
            f"out={out} would train with trainer=gpu, which slurm/launch.sh takes where none is "
            f"named, and this plan is of another: say trainer=gpu, or the one you mean"
        )
    if as_json:
        print(json.dumps(found.record()))
    else:
        display(_sections(found))
    if out is not None:
        write_text(Path(out), _job(found))


def make_organ_plan(
    verb: str,
    overrides: Sequence[str],
    *,
    gpu: Hardware,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
) -> OrganPlan:
    """The plan, whether it fits or not."""
    from aqaa.runtime.planner import composed

    cfg = composed(verb, overrides, nodes, gpus_per_node)
    rows, row_s = int(cfg.data.batch), _row_s(cfg.data)
    if rows < 1:
        raise UsageError(f"data.batch={rows}: there must be one at least")
    place = {"nodes": int(cfg.trainer.num_nodes), "gpus_per_node": int(cfg.trainer.devices)}
    steps, accelerated = int(cfg.run.steps), str(cfg.trainer.accelerator) != "cpu"
    probe_s = CLIP_S
    if "segment_frames" in cfg.data:
        cfg.data.segment_frames = min(_PROBE_FRAMES, cfg.data.segment_frames)
        probe_s = _row_s(cfg.data)
    step = measure_step(cfg).longer(row_s / probe_s)
    return OrganPlan(verb=verb, overrides=tuple(overrides), gpu=gpu, rows=rows, row_s=row_s,
                     steps=steps, accelerated=accelerated, step=step, **place)  # fmt: skip


def _row_s(data: Any) -> float:
    """Seconds of sound in the longest row that a source of batches gives."""
    if "segment_frames" in data:
        small = data._target_.endswith(".WaveformBatches")
        rate_hz = MEL_RATE_HZ if small else VOCODER_RATE_HZ / VOCODER_HOP_SAMPLES
        return float(data.segment_frames / rate_hz)
    if "longest_groups" in data:
        return float(data.longest_groups * GROUP_S)
    return float(data.get("longest_s", _UNBOUNDED_S))


def refuse_what_does_not_fit(plan: OrganPlan) -> None:
    """Raise, with the nearest batch that fits, if a rank needs more than it has."""
    room = plan.gpu.usable_bytes
    if plan.peak_bytes <= room:
        return
    fixed = plan.peak_bytes - plan.rows * plan.step.row_bytes
    fitting = (room - fixed) // plan.step.row_bytes
    cure = f"the nearest that fits is data.batch={fitting}" if fitting > 0 else (
        "no batch is small enough: choose a smaller network or shorter clips"
    )  # fmt: skip
    raise UsageError(
        f"{plan.verb} with data.batch={plan.rows} rows of {plan.row_s:g} s needs "
        f"{plan.peak_bytes / 1e9:.1f} GB a rank, more than the {room / 1e9:.0f} GB that a "
        f"{plan.gpu.name} leaves to it: {cure}"
    )


def _sections(plan: OrganPlan) -> dict[str, list[tuple[str, str]]]:
    """What is shown: rows of (what, how much) by heading."""
    seconds = plan.rows * plan.ranks * plan.row_s
    return {
        f"{plan.verb} on {plan.nodes} x {plan.gpus_per_node} {plan.gpu.name}": [
            *((f"parameters of {name}", f"{n:,}") for name, n in plan.step.parameters.items()),
            ("rows of a rank", f"{plan.rows} of at most {plan.row_s:g} s"),
        ],
        "memory of a rank": [
            *((name, size(value)) for name, value in plan.bytes_by_kind.items() if value),
            ("peak", size(plan.peak_bytes)),
            ("usable", size(plan.gpu.usable_bytes)),
        ],
        "one step": [
            ("sound", f"{seconds:,.0f} s"),
            ("products / network", f"{plan.compute_s:.3f} / {plan.network_s:.3f} s"),
            ("limit", plan.limit),
        ],
        "the whole training": [
            ("steps", f"{plan.steps:,}"),
            ("wall time, of such rows at that speed", f"{plan.hours:,.1f} h"),
            ("checkpoint", size(plan.state_bytes)),
        ],
    }


def _job(plan: OrganPlan) -> str:
    return sbatch(
        plan.verb, plan.overrides, nodes=plan.nodes, gpus_per_node=plan.gpus_per_node,
        hours=plan.hours,
        notes=[f"Planned: {plan.hours:,.1f} h in all, {size(plan.peak_bytes)} of "
               f"{size(plan.gpu.usable_bytes)} a rank, limited by {plan.limit}."],
    )  # fmt: skip
