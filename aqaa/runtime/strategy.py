"""ZeRO for the backbone, on GPU nodes and on a few CPU processes alike.

Letters: none; parameters pass through whole, whatever their shape.
"""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from aqaa.errors import UsageError
from aqaa.runtime import shards
from aqaa.states import SHARDED
from aqaa.storage import Gather, in_place


class ShardedStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO under Lightning, with the cures that equality with one process needs.

    Optimizer, schedule, accumulation, clipping and precision come from the stage and the trainer;
    everything else is said here. Weights are exported in the precision they are trained in; with
    ``bf16`` DeepSpeed keeps fp32 masters beside them in the optimizer, and the gradients of several
    batches are added up in fp32 (stages 2 and 3; stage 1 adds them up as it has them).

    Args:
        device: ``cpu`` (gloo) or ``gpu``; the trainer's accelerator.
        stage: 1 shards the optimizer, 2 gradients too, 3 parameters too.
        offload: what is kept in host memory: ``none``, ``optimizer``, or ``all`` (parameters too).
        overlap: exchange gradients while the backward pass goes on.
        reduce_bucket_elements: gradients exchanged at once.
        gather_bucket_elements: parameters gathered or fetched ahead at once.
        live_elements: parameters kept whole at most (stage 3).
        persist_below_elements: smaller parameters stay whole on every rank (stage 3).
    """

    def __init__(
        self,
        *,
        device: Literal["cpu", "gpu"],
        stage: Literal[1, 2, 3],
        offload: Literal["none", "optimizer", "all"],
        overlap: bool,
        reduce_bucket_elements: int,
        gather_bucket_elements: int,
        live_elements: int,
        persist_below_elements: int,
    ) -> None:
        if offload == "all" and stage != 3:
            raise UsageError(f"stage={stage} keeps parameters whole: offload=all needs stage=3")
        if device == "cpu":
            _prepare_cpu()
        host = {"device": "cpu", "pin_memory": device == "gpu"}
        zero: dict[str, Any] = {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": overlap,
            "reduce_bucket_size": reduce_bucket_elements,
            "allgather_bucket_size": gather_bucket_elements,
        }
        if stage == 3:
            zero |= {
                "stage3_prefetch_bucket_size": gather_bucket_elements,
                "stage3_max_live_parameters": live_elements,
                "stage3_max_reuse_distance": live_elements,
                "stage3_param_persistence_threshold": persist_below_elements,
            }
        if offload != "none":
            zero["offload_optimizer"] = dict(host)
        if offload == "all":
            zero["offload_param"] = dict(host)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own timers read it
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }
        super().__init__(config=config)

    def setup_environment(self) -> None:
        """Take the device and join the other ranks; Lightning's own would refuse a CPU."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Join the other ranks."""
        if self.root_device.type != "cpu":
            super().setup_distributed()
            return
        from lightning.fabric.utilities.seed import reset_seed

        _skip_shared_memory_op()
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _init_config_if_needed(self) -> None:
        """Complete the settings: a sum of bf16 gradients in bf16 would lose the small ones.

        Stage 1 would take another optimizer for it, which adds up no better (measured) and whose
        shards are laid out otherwise.
        """
        super()._init_config_if_needed()
        assert self.config is not None
        stage = self.config["zero_optimization"]["stage"]
        if stage > 1 and self.config.get("gradient_accumulation_steps", 1) > 1:
            self.config["data_types"] = {"grad_accum_dtype": "fp32"}

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Optimizer]:
        """Build the engine; a CPU has no index, which Lightning passes on as the rank."""
        import argparse

        import deepspeed

        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, wrapped

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Nothing is sharded on the way: the stage loads its backbone into shards itself.

        Built under ``zero.Init`` a model gets other weights, and an adapter's B is not zero.
        """
        self._init_config_if_needed()
        module: Any = self.lightning_module
        if not getattr(module, "sharded", False):
            raise UsageError(
                f"{type(module).__name__.lower()} is a small network and trains on whole copies: "
                f"use trainer=cpu or trainer=gpu, with trainer.devices=N for N processes"
            )
        if self.zero_stage_3:
            module.deepspeed = self.config
        yield

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Lightning has divided the loss by the accumulated batches; DeepSpeed must not again."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Buffers alone: parameters are saved in shards."""
        module: Any = self.lightning_module
        buffers = dict(module.named_buffers(remove_duplicate=False))
        return {k: v for k, v in module.state_dict().items() if k in buffers}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: it is saved in shards."""
        return {}

    def shard(self) -> dict[str, Tensor]:
        """What this rank alone will save, as views."""
        module: Any = self.lightning_module
        return shards.collect(self.deepspeed_engine, module)[1]

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Every rank saves what it holds."""
        module: Any = self.lightning_module
        about, tensors = shards.collect(self.deepspeed_engine, module)
        files: Any = self.checkpoint_io
        files.save_checkpoint({**checkpoint, SHARDED: about}, filepath, storage_options=tensors)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the state, and each rank its share, whatever number of ranks has written it."""
        files: Any = self.checkpoint_io
        module: Any = self.lightning_module
        parameters = dict(module.named_parameters())
        wanted = shards.stretches(self.deepspeed_engine, parameters)
        state, found = files.load(checkpoint_path, wanted)
        if found is None:  # saved by one process with whole copies
            found = shards.WholeCopies(state=state)
            state[SHARDED] = found.about
        buffers = dict(module.named_buffers(remove_duplicate=False))
        kept = {k: v for k, v in state["state_dict"].items() if k in buffers}
        module.load_state_dict(kept, strict=False)
        shards.restore(self.deepspeed_engine, parameters, state[SHARDED], found)
        return state


@contextmanager
def _gathered(parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
    """Whole parameters inside; True on the one rank that is to keep them."""
    import deepspeed
    from torch import distributed

    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield distributed.get_rank() == 0


def gather_of(strategy: Strategy) -> Gather:
    """How parameters trained under a strategy are made whole, one after the other."""
    if isinstance(strategy, ShardedStrategy) and strategy.zero_stage_3:
        return _gathered
    if strategy.is_global_zero:
        return in_place
    return _elsewhere


@contextmanager
def _elsewhere(parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
    """Parameters are whole on every rank, and another one keeps them."""
    yield False


def gradient_norm(strategy: Strategy) -> float:
    """Norm of the gradient of the step just taken, 0 where it lies with the parameters."""
    if not isinstance(strategy, ShardedStrategy):
        return 0.0
    norm = strategy.deepspeed_engine.get_global_grad_norm()
    if norm is None:
        return 0.0
    return float(norm) if norm >= 0 else math.nan  # DeepSpeed says -1 for what is no number


def end_others(strategy: Strategy) -> None:
    """Kill the ranks that Lightning's launcher started here; torchrun and srun see to theirs."""
    if strategy.launcher is not None:
        strategy.launcher.kill(signal.SIGKILL)


def _prepare_cpu() -> None:
    """Tell DeepSpeed, before it is first imported, not to look for a GPU."""
    os.environ["DS_ACCELERATOR"] = "cpu"


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives: minutes, and a compiler."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
