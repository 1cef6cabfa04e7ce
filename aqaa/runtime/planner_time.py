"""Seconds of a step, by what could limit it, and what follows: tokens a second, MFU, days.

Multiplications cost 2 FLOP a parameter forwards and 4 backwards (2 where nothing but an adapter is
trained); recomputing a layer costs its forward again, which counts as work but not for the MFU.
"""

from dataclasses import dataclass

from aqaa.backbone.shape import Shape
from aqaa.runtime.planner_memory import Placement, checkpoint_bytes, memory


@dataclass(frozen=True)
class Hardware:
    """One accelerator and its ways out (conf/gpu); rates are of one direction."""

    name: str
    memory_gb: float
    reserve_gb: float
    tflops: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    disk_gb_s: float
    efficiency: float
    network_share: float

    @property
    def usable_bytes(self) -> int:
        """Bytes a training can have."""
        return int(1e9 * (self.memory_gb - self.reserve_gb))


@dataclass(frozen=True)
class Timing:
    """One step of the optimizer on all ranks: seconds by limit, and what follows."""

    compute_s: float
    memory_s: float
    network_s: float
    gathered_bytes: int
    reduced_bytes: int
    step_tokens: int
    model_flops: float
    mfu: float
    checkpoint_bytes: int
    checkpoint_s: float

    @property
    def step_s(self) -> float:
        """Seconds of a step: what happens beside one another takes as long as the longest."""
        return max(self.compute_s, self.network_s, self.memory_s)

    @property
    def limit(self) -> str:
        """What the step waits for."""
        times = {"compute": self.compute_s, "network": self.network_s, "memory": self.memory_s}
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_s(self) -> float:
        """Ids trained a second, all ranks together."""
        return self.step_tokens / self.step_s


def timing(shape: Shape, place: Placement, gpu: Hardware, *, gpus_per_node: int) -> Timing:
    """Predict one step."""
    tokens = place.tokens * place.accumulate  # of one rank
    model, work = flops(shape, place)
    compute_s = tokens * work / (1e12 * gpu.tflops * gpu.efficiency)
    gathered, reduced = traffic(shape, place)
    within = place.ranks <= gpus_per_node
    rate = 1e9 * gpu.network_share * (gpu.link_gb_s if within else gpu.network_gb_s)
    network_s = (gathered + reduced) / rate if place.ranks > 1 else 0.0
    moved = _memory_traffic(shape, place)
    memory_s = moved / (1e9 * gpu.memory_gb_s)
    step_s = max(compute_s, network_s, memory_s)
    kept = checkpoint_bytes(shape, place)
    nodes = max(1, place.ranks // gpus_per_node)
    return Timing(
        compute_s=compute_s,
        memory_s=memory_s,
        network_s=network_s,
        gathered_bytes=gathered,
        reduced_bytes=reduced,
        step_tokens=tokens * place.ranks,
        model_flops=model,
        mfu=tokens * model / (step_s * 1e12 * gpu.tflops),
        checkpoint_bytes=kept,
        checkpoint_s=kept / (1e9 * gpu.disk_gb_s * nodes),
    )


def flops(shape: Shape, place: Placement) -> tuple[float, float]:
    """FLOP a token of the model (6 N, 4 N with an adapter, attention), and with recomputation."""
    trained = shape.whole.trainable
    full = trained == shape.whole.parameters
    multiplied = shape.matmul
    once = 2.0 * multiplied
    # Scores and their sums: 4 T A a layer and token, half of it masked; twice that backwards.
    attention = 2.0 * place.row_tokens * shape.attention_width * shape.layers
    backwards = 4.0 * multiplied if full else 2.0 * multiplied + 2.0 * trained
    model = once + backwards + 3 * attention
    return model, model + (once + attention if place.checkpointing else 0.0)


def traffic(shape: Shape, place: Placement) -> tuple[int, int]:
    """Bytes each rank receives in gathers and sends in reductions, a step of the optimizer."""
    if place.ranks == 1:
        return 0, 0
    part = (place.ranks - 1) / place.ranks
    weights = part * shape.whole.parameters * place.weight_bytes
    trained = part * shape.whole.trainable * place.weight_bytes
    if place.stage == 3:  # gathered forwards and backwards, reduced, in every pass
        passes = place.accumulate
        return int(2 * weights * passes), int(trained * passes)
    passes = place.accumulate if place.stage == 2 else 1
    return int(trained), int(trained * passes)


def _memory_traffic(shape: Shape, place: Placement) -> float:
    """Bytes through a rank's own memory: weights in each pass, activations, the optimizer."""
    weights = 3.0 * shape.whole.parameters * place.weight_bytes * place.accumulate
    found = memory(shape, place)
    activations = 2.0 * place.tokens * shape.whole.saved_bytes * place.accumulate
    optimizer = 2.0 * (found.optimizer + found.gradients)
    return weights + activations + optimizer
