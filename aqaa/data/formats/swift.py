"""ms-swift's and LLaMA-Factory's JSON and JSONL: dialogues whose text says ``<audio>`` for sound.

Both name the sound files in a list beside the dialogue, in the order of the tags. ms-swift writes
``messages`` (role, content) and a rejected answer or dialogue; LLaMA-Factory ``conversations``
(from, value), or messages too, and ``chosen`` and ``rejected``. Either is read, however mixed.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aqaa.data.formats.sounds import Names, Placed, Sounds, beside, lines_of
from aqaa.data.manifest import parse_row
from aqaa.errors import UsageError
from aqaa.storage import read_json, write_json, write_text

TAG = "<audio>"
_ROLES = {"gpt": "assistant", "assistant": "assistant", "model": "assistant", "human": "user",
          "user": "user", "system": "system"}  # fmt: skip
_OURS = {"assistant": "gpt", "user": "human", "human": "human", "system": "system"}
_KEPT = {"id", "kind", "messages", "prompt", "chosen", "rejected"}
Message = dict[str, Any]


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """Chat rows, and preference rows where an answer is rejected."""
    names = Names()
    for number, (place, record) in enumerate(records(path)):
        name, meta = names(record.get("id", f"{path.stem}-{number:07}"), place)
        row = _row(record, path.parent, place)
        yield Placed(place, {"id": name, **row, **({"meta": meta} if meta else {})})


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list or of JSON lines, each with its place."""
    if path.suffix == ".json":
        listed = read_json(path)
        if not isinstance(listed, list):
            raise UsageError(f"{path} is not a list of samples")
        for number, record in enumerate(listed, start=1):
            if not isinstance(record, dict):
                raise UsageError(f"{path}: sample {number} is not an object")
            yield f"{path}: sample {number}", record
        return
    for place, line in lines_of(path):
        record, problem = parse_row(line.encode())
        if problem:
            raise UsageError(f"{place} is {problem}")
        yield place, record


def _row(record: dict[str, Any], folder: Path, place: str) -> dict[str, Any]:
    messages = _messages(record.get("messages", record.get("conversations")), place)
    if record.get("system"):
        messages.insert(0, {"role": "system", "content": str(record["system"])})
    chosen, rejected = record.get("chosen"), None
    if chosen is not None:
        messages = [*messages, *_messages([chosen], place)]
        rejected = _messages([record.get("rejected")], place)
    elif "rejected_messages" in record:
        rejected = _messages(record["rejected_messages"], place)[-1:]
    elif record.get("rejected_response") is not None:
        rejected = [{"role": "assistant", "content": str(record["rejected_response"])}]
    files = _files(record, "audios", folder, place)
    turns = [_turn(message, files, place) for message in messages]
    if rejected is None:
        _spent(files, place)
        return {"kind": "chat", "messages": turns}
    # Swift lists the sound of the whole rejected dialogue, LLaMA-Factory that of both in one list.
    if "rejected_audios" in record:
        _spent(files, place)
        files = _files(record, "rejected_audios", folder, place)
        heard = sum(p["type"] == "audio" for turn in turns[:-1] for p in turn["content"])
        del files[: min(heard, max(0, len(files) - rejected[0]["content"].count(TAG)))]
    answer = [_turn(message, files, place) for message in rejected]
    _spent(files, place)
    return {"kind": "preference", "prompt": turns[:-1], "chosen": turns[-1:], "rejected": answer}


def _messages(listed: Any, place: str) -> list[Message]:
    """Messages in ms-swift's words."""
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{place} has no messages")
    found = []
    for message in listed:
        fields = message if isinstance(message, dict) else {}
        role, content = (fields.get(a, fields.get(b)) for a, b in
                         (("role", "from"), ("content", "value")))  # fmt: skip
        if role not in _ROLES or not isinstance(content, str):
            raise UsageError(f"{place} has a message of role {role!r} that is not understood")
        loss = {"loss": fields["loss"]} if isinstance(fields.get("loss"), bool) else {}
        found.append({"role": _ROLES[role], "content": content, **loss})
    return found


def _files(record: dict[str, Any], name: str, folder: Path, place: str) -> list[str]:
    listed = record.get(name) or []
    listed = [listed] if isinstance(listed, str) else listed
    if not isinstance(listed, list) or not all(isinstance(file, str) for file in listed):
        raise UsageError(f"{place}: {name} is not a list of sound files")
    return [beside(file, folder, place) for file in listed]


def _turn(message: Message, files: list[str], place: str) -> Message:
    """A message of ours; takes its sound files off the list."""
    content: list[dict[str, Any]] = []
    for number, text in enumerate(message["content"].split(TAG)):
        if number:
            if not files:
                raise UsageError(f"{place} says {TAG} more often than it names sound files")
            content.append({"type": "audio", "path": files.pop(0)})
        if text.strip():
            content.append({"type": "text", "text": text})
    return {**message, "content": content}


def _spent(files: list[str], place: str) -> None:
    if files:
        raise UsageError(f"{place} names {len(files)} sound files more than it says {TAG}")


def write_swift(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write ``NAME.jsonl`` for ms-swift."""
    lines = []
    for place, row in _dialogues(rows, sounds):
        prompt = row.get("messages") or [*row["prompt"], row["chosen"][-1]]
        audios: list[str] = []
        messages = [_written(m, audios, row["id"], place, sounds) for m in prompt]
        record = {"id": row["id"], "messages": messages, "audios": audios}
        if "rejected" in row:
            audios = list(audios[: sum(m["content"].count(TAG) for m in messages[:-1])])
            answer = _written(row["rejected"][-1], audios, f"{row['id']}-r", place, sounds)
            record |= {"rejected_messages": [*messages[:-1], answer], "rejected_audios": audios}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(sounds.folder / f"{name}.jsonl", "".join(lines))


def write_llamafactory(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write ``NAME.json``, ``NAME_pairs.json`` and their dataset_info.json for LLaMA-Factory."""
    chats, pairs = [], []
    for place, row in _dialogues(rows, sounds):
        audios: list[str] = []

        def turn(message: Message, more: str = "", row: Any = row, place: str = place,
                 audios: list[str] = audios) -> Message:  # fmt: skip
            found = _written(message, audios, f"{row['id']}{more}", place, sounds)
            if "loss" in found:
                sounds.lose("llamafactory has no place for 'loss' of a turn")
            return {"from": _OURS[found["role"]], "value": found["content"]}

        listed = [turn(m) for m in row.get("messages") or row["prompt"]]
        record = {"id": row["id"], "conversations": listed}
        if "rejected" in row:
            ends = {s: turn(row[s][-1], f"-{s}") for s in ("chosen", "rejected")}
            pairs.append({**record, **ends, "audios": audios})
        else:
            chats.append({**record, "audios": audios})
    columns = {"messages": "conversations", "audios": "audios"}
    info: dict[str, Any] = {}
    if chats:
        write_json(sounds.folder / f"{name}.json", chats)
        info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns}
    if pairs:
        write_json(sounds.folder / f"{name}_pairs.json", pairs)
        columns = columns | {"chosen": "chosen", "rejected": "rejected"}
        info[f"{name}_pairs"] = {"file_name": f"{name}_pairs.json", "formatting": "sharegpt",
                                 "ranking": True, "columns": columns}  # fmt: skip
    write_json(sounds.folder / "dataset_info.json", info)


def _dialogues(rows: Iterable[Placed], sounds: Sounds) -> Iterator[Placed]:
    for placed in rows:
        if not {"messages", "prompt"} & set(placed.row) or "audio" in placed.row:
            sounds.lose("this format holds dialogues and pairs; rows of other kinds are lost")
            continue
        for field in sorted(set(placed.row) - _KEPT):
            sounds.lose(f"this format has no place for {field!r}")
        yield placed


def _written(
    message: Message, audios: list[str], name: str, place: str, sounds: Sounds
) -> Message:
    """A message in ms-swift's words; its sound files are added to the list."""
    content = ""
    for part in message["content"]:
        if part["type"] == "text":
            if TAG in part["text"]:
                raise UsageError(f"{place} says {TAG} in its text, which stands for sound there")
            content += part["text"]
        elif "path" not in part:
            sounds.lose("this format holds sound, not codes; such parts are lost")
        else:
            content += TAG
            file = sounds.alone(part, f"{name}-{len(audios)}")
            audios.append(sounds.absolute(file))
            if part.keys() - {"type", "path", "start", "end"}:
                sounds.lose("this format has no place for the words and codes of audio")
    for field in sorted(set(message) - {"role", "content", "loss"}):
        sounds.lose(f"this format has no place for {field!r} of a turn")
    role = "user" if message["role"] == "human" else message["role"]
    loss = {"loss": message["loss"]} if "loss" in message else {}
    return {"role": role, "content": content, **loss}
