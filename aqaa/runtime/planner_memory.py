"""Bytes a rank needs, by what they are for, at the two moments when it needs most.

Partitioning is that of ZeRO: stage 1 shares the optimizer's state among the ranks, stage 2 the
gradients too, stage 3 the weights too. Stage 0 is plain data parallelism.
"""

from dataclasses import dataclass, replace

from aqaa.backbone.shape import Shape

_MASTER_BYTES, _MOMENT_BYTES = 4, 8  # AdamW: a float32 copy of a weight, and its two moments
# Gradients of what one layer keeps, alive at once on the way back, over what it keeps.
_WAY_BACK = 0.5


@dataclass(frozen=True)
class Placement:
    """How a training is spread out.

    Args:
        stage: of ZeRO, 0 to 3.
        ranks: processes, one a GPU.
        weight_bytes: of one weight as it is computed with.
        rows: sequences a rank takes in one forward pass.
        row_tokens: ids in a sequence.
        accumulate: forward passes in a step of the optimizer.
        checkpointing: keep only what enters a layer and compute the rest again on the way back.
        autocast: weights stay float32 and are cast (mixed precision without DeepSpeed).
        offload_optimizer: its state lives in the host's memory.
        offload_weights: the shards of stage 3 live in the host's memory.
        bucket_values: gradients reduced at a time.
        live_values: weights stage 3 holds gathered at a time.
        slice_numbers: logits that exist at a time.
        host: the ranks are CPU processes, where DeepSpeed's stages 1 and 2 keep the weights as they
            were loaded beside their own flat copy (measured; a GPU's are moved).
    """

    stage: int
    ranks: int
    weight_bytes: int
    rows: int
    row_tokens: int
    accumulate: int = 1
    checkpointing: bool = False
    autocast: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket_values: int = 500_000_000
    live_values: int = 1_000_000_000
    slice_numbers: int = 1 << 25
    host: bool = False

    @property
    def tokens(self) -> int:
        """Ids of one forward pass of a rank."""
        return self.rows * self.row_tokens

    @property
    def zero(self) -> bool:
        """Whether DeepSpeed keeps a float32 copy of the weights."""
        return self.stage > 0

    def with_(self, **changes: int | bool) -> "Placement":
        """The same with some settings changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by kind; ``peak`` is the larger of the two moments."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    backward: int
    step: int

    @property
    def peak(self) -> int:
        """Bytes at the worse moment."""
        return max(self.backward, self.step)

    @property
    def moment(self) -> str:
        """When that is."""
        return "backward" if self.backward >= self.step else "optimizer step"

    def kinds(self) -> dict[str, int]:
        """Bytes by kind; not all of them are alive at the same moment."""
        names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
        return {name: getattr(self, name) for name in names}


def memory(shape: Shape, place: Placement) -> Memory:
    """What a rank needs, by kind and at its peak."""
    share = place.ranks
    trained, size = shape.whole.trainable, place.weight_bytes
    weights = shape.whole.parameters * size
    gradients = trained * size
    optimizer = trained * _optimizer_bytes(place)
    if place.stage >= 1:
        optimizer = _ceil(optimizer, share)
    if place.stage >= 2:
        gradients = _ceil(gradients, share)
    if place.stage == 3:
        weights = 0 if place.offload_weights else _ceil(weights, share)
    activations, logits = _activations(shape, place), _logits(shape, place)
    buffers, casts = _buffers(shape, place), _step_casts(shape, place)
    if place.offload_optimizer:
        optimizer = casts = 0
    fixed = weights + optimizer + buffers
    # A slice of logits is gone, its gradients made, before the way back comes to a layer.
    apart = min(_passing(shape, place), _slice(shape, place))
    # Lightning lets go of the last step's gradients only after the next forward pass, and those of
    # earlier passes stay anyway. DeepSpeed empties them in its step; stage 3 keeps their room.
    held = gradients if place.stage in (0, 3) or place.accumulate > 1 else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        backward=fixed + held + activations + logits - apart,
        step=fixed + gradients + casts,
    )


def state_bytes(shape: Shape, place: Placement) -> int:
    """Weights, gradients and optimizer of the whole training, over all ranks, each once."""
    frozen = shape.whole.parameters - shape.whole.trainable
    each = 2 * place.weight_bytes + _optimizer_bytes(place)
    return frozen * place.weight_bytes + shape.whole.trainable * each


def checkpoint_bytes(shape: Shape, place: Placement) -> int:
    """What an exact resume needs: float32 weights and moments of what is trained."""
    each = _MASTER_BYTES + _MOMENT_BYTES
    return shape.whole.trainable * each


def _optimizer_bytes(place: Placement) -> int:
    if place.zero:
        return _MASTER_BYTES + _MOMENT_BYTES
    return 2 * place.weight_bytes


def _activations(shape: Shape, place: Placement) -> int:
    """What the forward pass keeps, and what passes on the way back."""
    layer, whole = shape.layer.saved_bytes, shape.whole.saved_bytes
    if place.checkpointing:
        kept = shape.layers * shape.width * place.weight_bytes
        whole += kept - shape.layers * layer
    return place.tokens * whole + _passing(shape, place)


def _passing(shape: Shape, place: Placement) -> int:
    """Gradients within one layer on the way back, and the layer itself where it is recomputed."""
    layers = _WAY_BACK + (1 if place.checkpointing else 0)
    return place.tokens * int(layers * shape.layer.saved_bytes)


def _logits(shape: Shape, place: Placement) -> int:
    """A slice of float32 logits, and the gradients the head makes with it and keeps."""
    size = place.weight_bytes
    half = size if size < 4 else 0
    hidden = place.tokens * shape.width * size
    table = shape.table * (4 + half) if shape.whole.trainable == shape.whole.parameters else 0
    return _slice(shape, place) + hidden + table


def _slice(shape: Shape, place: Placement) -> int:
    """The logits that exist at a time, in float32, and in the weights' precision if it is less."""
    size, numbers = place.weight_bytes, min(place.slice_numbers, place.tokens * shape.table_rows)
    return numbers * (4 + (size if size < 4 else 0))


def _buffers(shape: Shape, place: Placement) -> int:
    """What collectives need besides: buckets, gathered weights, casts."""
    size, trained = place.weight_bytes, shape.whole.trainable
    casts = 2 * shape.whole.parameters if place.autocast else 0
    if place.stage == 0:
        return casts + (trained * size if place.ranks > 1 else 0)  # one bucket beside each gradient
    bucket = place.bucket_values * size  # taken whole, however few there are to reduce
    if place.stage < 3:
        return bucket + (shape.whole.parameters * size if place.host else 0)
    live = min(shape.whole.parameters, max(place.live_values, shape.whole.largest))
    largest = shape.whole.largest if trained == shape.whole.parameters else 0
    return (live + largest) * size + bucket


def _step_casts(shape: Shape, place: Placement) -> int:
    """The float32 gradients of a rank's share, made for the step."""
    return 4 * _ceil(shape.whole.trainable, place.ranks) if place.zero else 0


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
