"""`aqaa import-config FILE`: a training of LLaMA-Factory or ms-swift as commands of ours."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aqaa.data.formats.swift import TAG, records
from aqaa.errors import UsageError
from aqaa.runtime.compose import bind_targets, compose
from aqaa.runtime.foreign_keys import (
    LLAMAFACTORY,
    SWIFT,
    Keys,
    adapter_settings,
    trainer_settings,
)
from aqaa.storage import read_json, write_text

# Keys that only one of the two has.
_MARKS = {
    LLAMAFACTORY: ("model_name_or_path", "finetuning_type", "dataset_dir", "cutoff_len", "stage"),
    SWIFT: ("train_type", "tuner_type", "rlhf_type", "max_length", "model", "torch_dtype"),
}
_TOKENIZERS = "$TOKENIZERS"  # of the shell that runs the script
_VERBS = {"pt": "pretrain", "sft": "sft", "dpo": "dpo"}


def import_config(*, file: str, reads: str | None = None, out: str | None = None) -> None:
    """Write the commands that do what a configuration of another trainer asks for.

    Args:
        file: its YAML or JSON.
        reads: ``llamafactory`` or ``swift`` (None: as its keys tell).
        out: the script that is written (None: it is printed).

    Raises:
        UsageError: no such configuration, or a stage that is none of ours.
    """
    path = Path(file)
    given = _given(path)
    kind = reads or _kind(path, given)
    if kind not in _MARKS:
        raise UsageError(f"reads={kind} is neither {' nor '.join(_MARKS)}")
    keys = Keys(given, kind)
    verb = _verb(keys, kind)
    data = _data(keys, kind, path.parent)
    output = Path(str(keys.take("output_dir")))
    settings = {"run.root": str(output.parent), "run.name": output.name}
    settings |= trainer_settings(keys) | adapter_settings(keys)
    settings |= _batches(keys, verb, data, settings)
    settings |= _rate(keys, settings) | _loss(keys, verb) | _log(keys)
    commands = _commands(keys, kind, verb, data, settings)
    cfg = compose(verb, _overrides(verb, settings))  # what is written must compose
    bind_targets(cfg)
    script = _script(path, kind, commands, keys.rest())
    if out is None:
        print(script, end="")
        return
    write_text(out, script)
    print(f"{out}: {verb}, {len(keys.rest())} keys could not be mapped")


def _given(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"{path} does not hold the settings of a training")
    return given


def _kind(path: Path, given: Mapping[str, Any]) -> str:
    found = {kind: sum(name in given for name in names) for kind, names in _MARKS.items()}
    if found[LLAMAFACTORY] == found[SWIFT]:
        raise UsageError(f"{path} may be of either: say reads=llamafactory or reads=swift")
    return max(found, key=lambda kind: found[kind])


def _verb(keys: Keys, kind: str) -> str:
    named = keys.take("stage") or "sft" if kind == LLAMAFACTORY else keys.take("rlhf_type") or "sft"
    if named not in _VERBS:
        raise UsageError(f"there is no stage {named} here; there are {', '.join(_VERBS)}")
    return _VERBS[named]


# ---- data


class _Data:
    """The data file of a training, how many rows it has, and what its dialogues are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kinds: Counter[str] = Counter(_format(record) for _, record in records(path))
        self.rows = sum(self.kinds.values())


def _format(record: Mapping[str, Any]) -> str:
    """A dialogue's format: is the question heard, is the answer spoken?"""
    said = {"user": "", "assistant": ""}
    for turn in record.get("messages") or record.get("conversations") or ():
        role = {"human": "user", "gpt": "assistant"}.get(turn.get("from"), turn.get("role"))
        if role in said:
            said[role] = str(turn.get("content") or turn.get("value") or "")
    if TAG not in said["user"]:
        return "tqta"
    if TAG not in said["assistant"]:
        return "aqta"
    return "aqtaa" if said["assistant"].replace(TAG, "").strip() else "aqaa"


def _data(keys: Keys, kind: str, folder: Path) -> _Data | None:
    """The first data set that is a file here; the others are said."""
    named = keys.take("dataset") or []
    listed = named.split(",") if isinstance(named, str) else list(named)
    names = [str(name).strip() for name in listed]
    base = keys.take("dataset_dir")
    if len(names) > 1:
        keys.refuse("dataset", names[1:], "one corpus a training: put the files together")
    if not names:
        return None
    path = _file(names[0], kind, folder, base)
    if path is None:
        keys.refuse("dataset", names[0], "it is no JSON file here")
        return None
    return _Data(path)


def _file(name: str, kind: str, folder: Path, base: Any) -> Path | None:
    places = [Path(), folder]
    if kind == LLAMAFACTORY:
        places = [place / str(base or "data") for place in places]
        for place in places:
            if (place / "dataset_info.json").is_file():
                about = read_json(place / "dataset_info.json").get(name, {})
                name = str(about.get("file_name", name))
                break
    found = [place / name for place in places if Path(name).suffix in (".json", ".jsonl")]
    return next((path for path in found if path.is_file()), None)


# ---- settings


def _batches(
    keys: Keys, verb: str, data: _Data | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Sequences of a batch, and steps; an epoch is counted for one rank."""
    batch, packing = int(keys.take("per_device_train_batch_size")), bool(keys.take("packing"))
    found: dict[str, Any] = {}
    if verb == "dpo":
        found["data.batch"] = batch
    else:
        kinds = data.kinds if data else Counter({"aqtaa": 1})
        tasks = {task: {"share": n, "batch": batch} for task, n in sorted(kinds.items())}
        found["+data.tasks"] = tasks
        if packing and keys.has("max_length"):
            found |= {"data.row_tokens": int(keys.take("max_length")), "data.rows": batch}
    steps = keys.take("max_steps")
    epochs = float(keys.take("num_train_epochs"))
    if steps is None or int(steps) < 1:
        a_step = batch * settings["trainer.accumulate_grad_batches"]
        if data is None or packing:
            reason = "the length of an epoch is not known: run.steps=1000 is taken"
            keys.refuse("num_train_epochs", epochs, reason)
        steps = 1000 if data is None or packing else math.ceil(epochs * data.rows / a_step)
    found["run.steps"] = int(steps)
    return found


def _rate(keys: Keys, settings: Mapping[str, Any]) -> dict[str, Any]:
    rate = keys.take("learning_rate")
    if rate is None:
        rate = 1e-5 if settings["adapter"] == "none" else 1e-4
    share, steps = float(keys.take("warmup_ratio")), settings["run.steps"]
    warmup = keys.take("warmup_steps")
    return {
        "optim.lr": float(rate),
        "optim.warmup_steps": int(warmup) if warmup else round(share * steps),
    }


def _loss(keys: Keys, verb: str) -> dict[str, Any]:
    """Every id alike over the whole table, as theirs; of pairs all ids."""
    if verb != "dpo":
        same = {"text": 1.0, "linguistic": 1.0, "semantic": 1.0, "after": 1.0}
        return {"stage.normalise": "table", "stage.slot_weights": same}
    loss = keys.take("pref_loss") or keys.take("loss_type")
    if loss not in (None, "sigmoid", ["sigmoid"]):
        keys.refuse("pref_loss", loss, "the usual loss is taken")
    return {"stage.normalise": "table", "stage.beta": float(keys.take("beta")), "data.mask": "none"}


def _log(keys: Keys) -> dict[str, Any]:
    named = keys.take("report_to")
    names = [named] if isinstance(named, str) else list(named or [])
    for name in names:
        if name not in ("wandb", "none"):
            keys.refuse("report_to", name, "metrics.csv is written always, wandb where asked")
    return {"log": "wandb"} if "wandb" in names else {}


# ---- what is written


def _overrides(verb: str, settings: Mapping[str, Any]) -> list[str]:
    groups = ("trainer", "adapter", "log")
    ordered = sorted(settings, key=lambda name: (name not in groups, name))
    return [f"{name}={_value(settings[name])}" for name in ordered]


def _value(value: Any) -> str:
    """As Hydra's grammar reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_value(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _commands(
    keys: Keys, kind: str, verb: str, data: _Data | None, settings: dict[str, Any]
) -> list[list[str]]:
    """From the data file to the training."""
    root, model = settings["run.root"], keys.take("model") or "MODEL"
    commands: list[list[str]] = []
    if data is not None and verb != "dpo":
        name = data.path.name.split(".")[0]
        convert = ["aqaa", "data", "convert"]
        commands += [
            [*convert, str(data.path), f"reads={kind}", f"out={root}/dialogues"],
            [*convert, f"{root}/dialogues/{name}.jsonl", "writes=corpus", f"out={root}/corpus"],
        ]
    elif data is not None:
        keys.refuse("dataset", str(data.path), "pairs of sound: write their codes into pairs.jsonl")
    tokens = ["aqaa", "data", "tokenize", f"{root}/corpus", f"out={root}/tokens"]
    if verb != "dpo":
        commands.append([*tokens, f"tokenizers={_TOKENIZERS}"])
    codes = f"codes={root}/tokens/tokenizer"
    commands.append(["aqaa", "init", f"{root}/init", f"base={model}", codes])
    settings["parents.model"] = f"{root}/init"
    return [*commands, ["aqaa", verb, *_overrides(verb, settings)]]


def _script(
    path: Path, kind: str, commands: list[list[str]], unmapped: Mapping[str, tuple[Any, str]]
) -> str:
    said = [f"#   {name}: {value}  ({reason})" for name, (value, reason) in unmapped.items()]
    lines = [
        "#!/usr/bin/env bash",
        f"# What {path.name} asks of {kind}, from its data to its training. TOKENIZERS is a folder",
        "# of both speech tokenizers; base= must be a folder of the model on this machine.",
        *(["# Not mapped:", *said] if said else ["# Every key was mapped."]),
        "set -euo pipefail",
    ]
    return "\n".join([*lines, *map(_line, commands)]) + "\n"


def _line(words: list[str]) -> str:
    return " ".join(
        word.replace(_TOKENIZERS, f'"{_TOKENIZERS}"') if _TOKENIZERS in word else shlex.quote(word)
        for word in words
    )
