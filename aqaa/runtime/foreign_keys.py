"""What the settings of LLaMA-Factory and ms-swift are called here; both build on one trainer.

Facts about their keys are from their public documentation. A key is taken once; what is left, or
has a value that nothing here can be, is said with its reason.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

LLAMAFACTORY, SWIFT = "llamafactory", "swift"
# What they assume of a key that is not written down.
DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMAFACTORY: {
        "learning_rate": 5e-5, "lr_scheduler_type": "linear", "weight_decay": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "max_grad_norm": 1.0, "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "seed": 42,
        "lora_rank": 8, "lora_dropout": 0.0, "pref_beta": 0.1, "finetuning_type": "lora",
        "gradient_checkpointing": True, "warmup_ratio": 0.0, "output_dir": "runs/imported",
    },
    SWIFT: {
        "lr_scheduler_type": "cosine", "weight_decay": 0.1,
        "adam_beta1": 0.9, "adam_beta2": 0.95, "max_grad_norm": 1.0, "num_train_epochs": 3.0,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "seed": 42,
        "lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05, "beta": 0.1, "train_type": "lora",
        "gradient_checkpointing": True, "warmup_ratio": 0.0, "output_dir": "runs/imported",
    },
}  # fmt: skip
# One name for what the two call differently.
ALIASES = {
    "model_name_or_path": "model", "finetuning_type": "tuner", "train_type": "tuner",
    "tuner_type": "tuner", "sft_type": "tuner", "lora_target": "targets",
    "target_modules": "targets", "pref_beta": "beta", "cutoff_len": "max_length",
}  # fmt: skip
# Why a key has no place here.
REASONS = {
    "template": "a layout frames the turns, and travels with the backbone",
    "save_steps": "states are saved by time: run.save_every_s",
    "save_strategy": "states are saved by time: run.save_every_s",
    "eval_strategy": "checks come by steps: trainer.val_check_interval",
    "val_size": "a corpus has its own validation split",
    "split_dataset_ratio": "a corpus has its own validation split",
    "val_dataset": "a corpus has its own validation split",
    "preprocessing_num_workers": "nothing is prepared before a training: data tokenize workers=",
    "dataset_num_proc": "nothing is prepared before a training: data tokenize workers=",
    "do_train": "a training verb trains",
    "do_eval": "checks come by steps: trainer.val_check_interval",
    "resume_from_checkpoint": "the same command goes on where it was cut",
    "flash_attn": "attention back-ends are chosen by the machine",
    "attn_impl": "attention back-ends are chosen by the machine",
    "max_samples": "all rows are used: shorten the data file",
    "max_length": "documents are not cut: only with packing=true it is the length of a row",
    "system": "tasks have their own system turns",
    "lora_alpha": "lora alone has it",
    "lora_rank": "lora alone has it",
    "lora_dropout": "lora alone has it",
    "targets": "lora alone has it",
}
NO_PLACE = "no such setting here"
_SCHEDULES = {
    "cosine": ("cosine", 0.0), "constant": ("constant", None),
    "constant_with_warmup": ("constant", None), "warmup_stable_decay": ("wsd", 0.0),
}  # fmt: skip
_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf")


class Keys:
    """The keys of one configuration; ``unmapped`` fills up with what finds no place."""

    def __init__(self, given: Mapping[str, Any], kind: str) -> None:
        self._names = {ALIASES.get(name, name): name for name in given}
        self._given = {ALIASES.get(name, name): value for name, value in given.items()}
        self._defaults = {ALIASES.get(n, n): v for n, v in DEFAULTS[kind].items()}
        self.unmapped: dict[str, tuple[Any, str]] = {}

    def take(self, name: str) -> Any:
        """The value of a key, or what is assumed of it; it is dealt with then."""
        return self._given.pop(name, self._defaults.get(name))

    def has(self, name: str) -> bool:
        """Whether it is written down, and not dealt with yet."""
        return name in self._given

    def refuse(self, name: str, value: Any, reason: str) -> None:
        """This value of a key has no place here."""
        self.unmapped[self._names.get(name, name)] = (value, reason)

    def rest(self) -> dict[str, tuple[Any, str]]:
        """Everything that found no place, by their names, with value and reason."""
        for name, value in self._given.items():
            self.refuse(name, value, REASONS.get(name, NO_PLACE))
        return dict(sorted(self.unmapped.items()))


def trainer_settings(keys: Keys) -> dict[str, Any]:
    """Settings that every stage has: optimizer, precision, place, checks."""
    found: dict[str, Any] = {}
    plain: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "weight_decay": ("optim.weight_decay", float),
        "max_grad_norm": ("trainer.gradient_clip_val", float),
        "seed": ("run.seed", int),
        "gradient_accumulation_steps": ("trainer.accumulate_grad_batches", int),
        "gradient_checkpointing": ("stage.activation_checkpointing", bool),
        "logging_steps": ("trainer.log_every_n_steps", int),
        "save_total_limit": ("run.keep_states", int),
        "dataloader_num_workers": ("run.loader_workers", int),
        "overwrite_output_dir": ("run.overwrite", bool),
    }
    for name, (ours, convert) in plain.items():
        value = keys.take(name)
        if value is not None:
            found[ours] = convert(value)
    if keys.has("disable_gradient_checkpointing"):
        off = bool(keys.take("disable_gradient_checkpointing"))
        found["stage.activation_checkpointing"] = not off
    if keys.has("eval_steps"):  # counted in batches here
        batches = int(keys.take("eval_steps")) * found["trainer.accumulate_grad_batches"]
        found["trainer.val_check_interval"] = batches
    betas = (float(keys.take("adam_beta1")), float(keys.take("adam_beta2")))
    found["optim.betas"] = list(betas)
    found |= _schedule(keys) | _precision(keys) | _place(keys)
    return found


def _schedule(keys: Keys) -> dict[str, Any]:
    named = keys.take("lr_scheduler_type")
    algorithm = keys.take("optim")
    if algorithm is not None and algorithm not in _OPTIMIZERS:
        keys.refuse("optim", algorithm, "AdamW is taken")
    if named not in _SCHEDULES:
        keys.refuse("lr_scheduler_type", named, "a cosine down to 0 is taken")
        named = "cosine"
    schedule, final = _SCHEDULES[named]
    return {"optim.schedule": schedule, **({} if final is None else {"optim.final_ratio": final})}


def _precision(keys: Keys) -> dict[str, Any]:
    half, dtype, fp16 = keys.take("bf16"), keys.take("torch_dtype"), keys.take("fp16")
    if fp16 or dtype == "float16":
        keys.refuse("fp16", True, "bf16 is taken")
    whole = dtype == "float32" or (half is False and not fp16)
    return {"trainer.precision": "32-true" if whole else "bf16-mixed"}


def _place(keys: Keys) -> dict[str, Any]:
    """One GPU, or, where DeepSpeed is asked for, the GPUs of one machine in shards."""
    named = keys.take("deepspeed")
    if named is None:
        return {"trainer": "gpu"}
    name = str(named).rsplit("/", 1)[-1]
    found = re.search(r"z(?:ero)?[_-]?(?:stage)?[_-]?([123])", name)
    stage = int(found[1]) if found else 3
    if not found:
        keys.refuse("deepspeed", named, "its name tells no stage of ZeRO: 3 is taken")
    offload = ("all" if stage == 3 else "optimizer") if "offload" in name else "none"
    return {
        "trainer": "zero3_nodes",
        "trainer.num_nodes": 1,
        "trainer.strategy.stage": stage,
        "trainer.strategy.offload": offload,
    }


def adapter_settings(keys: Keys) -> dict[str, Any]:
    """LoRA or all weights."""
    tuner = keys.take("tuner")
    if tuner == "full":
        return {"adapter": "none"}
    if tuner != "lora":
        keys.refuse("tuner", tuner, "lora is taken")
    rank, alpha = int(keys.take("lora_rank")), keys.take("lora_alpha")
    targets = keys.take("targets")
    if isinstance(targets, str) and targets not in ("all", "all-linear"):
        targets = [name.strip() for name in targets.split(",")]
    every = targets in (None, "all", "all-linear", ["all-linear"], ["all"])
    return {
        "adapter": "lora",
        "adapter.rank": rank,
        "adapter.alpha": 2 * rank if alpha is None else int(alpha),
        "adapter.dropout": float(keys.take("lora_dropout")),
        "adapter.targets": "all-linear" if every else targets,
    }
