"""The peer's side of the dpo bench: TRL's DPOTrainer on pairs that were written for it.

    python dpo_peer.py PAIRS MODEL MODE STEPS WARM FOLDER      (MODE: live, stored or padding_free)
    python dpo_peer.py PAIRS MODEL check POLICY FOLDER

Runs in the peer's own environment, so nothing of ours is imported. Prints one JSON line.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from sft_peer import status_kib, tokenizer  # noqa: E402

BATCH_PAIRS = 2
MAX_IDS = 1024


def load(folder: str, dtype: str):
    """The model, in a precision."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def trainer_of(pairs: str, model, reference, folder: str, steps: int, watched=None, **settings):
    """A DPOTrainer that takes the pairs as they are, in their order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    class Given(DPOTrainer):
        def _prepare_dataset(self, dataset, *more, **named):
            return dataset  # its ids are made already

        def _get_train_sampler(self, *more):
            return SequentialSampler(self.train_dataset)

        def training_step(self, *given, **named):
            if watched:
                watched("begin")
            loss = super().training_step(*given, **named)
            if watched:
                watched(float(loss))
            return loss

    config = DPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH_PAIRS,
        max_length=MAX_IDS,
        beta=0.1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        optim="adamw_torch_fused",
        learning_rate=1e-5,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
        **settings,
    )
    return Given(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(json.loads(Path(pairs).read_text())),
        processing_class=tokenizer(model.config.vocab_size),
    )


def main(pairs: str, model_folder: str, mode: str, steps: int, warm: int, folder: str) -> None:
    """Train, and print pairs per CPU second and the memory it took."""
    import torch
    import trl
    from datasets import Dataset  # noqa: F401
    from trl import DPOTrainer  # noqa: F401

    torch.set_num_threads(1)
    bare = status_kib("VmRSS")
    stamps: list[float] = []
    losses: list[float] = []

    def watched(said):
        if said == "begin":
            stamps.append(time.process_time())
        else:
            losses.append(said)

    reference = load(model_folder, "float32") if mode == "live" else None
    settings = {} if mode == "live" else {"precompute_ref_log_probs": True}
    settings |= {"padding_free": True} if mode == "padding_free" else {}
    # the last step's start ends the one before
    model = load(model_folder, "float32")
    trainer_of(pairs, model, reference, folder, steps + warm + 1, watched, **settings).train()
    seconds = stamps[warm + steps] - stamps[warm]
    record = {
        "pairs_per_s": BATCH_PAIRS * steps / seconds,
        "s_per_step": seconds / steps,
        "memory_mib": (status_kib("VmHWM") - bare) / 1024,
        "losses": losses,
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
    }
    print(json.dumps(record))


def check(pairs: str, model_folder: str, policy: str, folder: str) -> None:
    """Print the loss of the first pairs under a policy that is not the reference.

    ``loss``: with log-probabilities in double. TRL's fused head keeps them in float, whatever the
    model is: ``loss_of_its_head``.
    """
    import torch

    models = [load(at, "float64") for at in (policy, model_folder)]
    trainer = trainer_of(pairs, *models, folder, 1)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        fused = trainer.compute_loss(trainer.model, batch)
        for model in models:
            model.forward = in_double(model)
        loss = trainer.compute_loss(trainer.model, batch)
    print(json.dumps({"loss": float(loss), "loss_of_its_head": float(fused)}))


def in_double(model):
    """The model's forward with log-probabilities from whole logits in place of the fused ones."""
    fused = model.forward

    def forward(input_ids, labels, attention_mask=None, **more):
        out = fused(input_ids=input_ids, labels=labels, attention_mask=attention_mask, **more)
        hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        log_probs = model.lm_head(hidden[:, :-1]).log_softmax(-1)
        targets = labels[:, 1:]
        found = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        out.log_probs = found.masked_fill(targets == -100, 0)
        return out

    return forward


if __name__ == "__main__":
    pairs_, model_, mode_, *more_ = sys.argv[1:]
    if mode_ == "check":
        check(pairs_, model_, *more_)
    else:
        main(pairs_, model_, mode_, int(more_[0]), int(more_[1]), more_[2])
