"""The peer's side of the sft bench: TRL's SFTTrainer on documents that were written for it.

    python sft_peer.py DOCUMENTS MODEL MODE STEPS WARM FOLDER      (MODE: padded or packed)

Runs in the peer's own environment, so nothing of ours is imported. Prints one JSON line.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled")

ROW_TOKENS = 512
BATCH = {"padded": 4, "packed": 2}


def status_kib(name: str) -> int:
    """A figure of this process, as the system counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def tokenizer(rows: int):
    """Any tokenizer with as many words: SFTTrainer wants one, though the ids are made already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>"] + [f"t{i}" for i in range(4, rows)]
    words = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **specials)


def main(documents: str, model_folder: str, mode: str, steps: int, warm: int, folder: str) -> None:
    """Train, and print real tokens per CPU second and the memory it took."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    bare = status_kib("VmRSS")
    rows = json.loads(Path(documents).read_text())
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    stamps: list[float] = []
    real: list[int] = []
    losses: list[float] = []

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, *more, **named):
            stamps.append(time.process_time())
            # Padding is id 0, which no document has.
            real.append(int((inputs["input_ids"] != 0).sum()))
            loss = super().training_step(model, inputs, *more, **named)
            losses.append(float(loss))
            return loss

    settings = SFTConfig(
        output_dir=folder,
        max_steps=steps + warm + 1,  # the last one's start ends the one before
        per_device_train_batch_size=BATCH[mode],
        packing=mode == "packed",
        max_length=ROW_TOKENS,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        optim="adamw_torch_fused",
        learning_rate=1e-4,
        max_grad_norm=1.0,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = Counting(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(model.config.vocab_size),
    )
    trainer.train()
    seconds = stamps[warm + steps] - stamps[warm]
    record = {
        "tokens_per_s": sum(real[warm : warm + steps]) / seconds,
        "s_per_step": seconds / steps,
        "memory_mib": (status_kib("VmHWM") - bare) / 1024,
        "real": real,
        "losses": losses,
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    documents, model, mode, steps, warm, folder = sys.argv[1:]
    main(documents, model, mode, int(steps), int(warm), folder)
