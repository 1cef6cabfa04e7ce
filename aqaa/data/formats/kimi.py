"""Kimi-Audio's JSONL: a conversation of messages that are text or audio, one a message."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from aqaa.data.formats.sounds import Names, Placed, Sounds, beside, lines_of
from aqaa.data.manifest import parse_row
from aqaa.errors import UsageError
from aqaa.storage import write_text

_LOST = ("loss", "speaker", "style")
_KEPT = {"id", "kind", "messages"}


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """One chat row a line; several messages of one role in a row are parts of one turn."""
    names = Names()
    for number, (place, line) in enumerate(lines_of(path)):
        # A line may also be the bare list of messages.
        text = f'{{"conversation": {line}}}' if line.startswith("[") else line
        record, problem = parse_row(text.encode())
        if problem:
            raise UsageError(f"{place} is {problem}")
        messages = record.get("conversation")
        fits = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages
        )
        if not fits or not messages:
            raise UsageError(f"{place} has no conversation of messages with roles")
        turns = [
            {"role": role, "content": [p for m in group for p in _parts(m, path, place)]}
            for role, group in groupby(messages, key=lambda m: m["role"])
        ]
        name, meta = names(record.get("id", f"{path.stem}-{number:07}"), place)
        row: dict[str, Any] = {"id": name, "kind": "chat", "messages": turns}
        yield Placed(place, {**row, "meta": meta} if meta else row)


def _parts(message: dict[str, Any], path: Path, place: str) -> list[dict[str, Any]]:
    kind, content = message.get("message_type"), message.get("content")
    if kind == "text" and isinstance(content, str):
        return [{"type": "text", "text": content}]
    if kind == "audio" and isinstance(content, str):
        return [{"type": "audio", "path": beside(content, path.parent, place)}]
    if kind == "audio-text" and isinstance(content, list) and len(content) == 2:
        sound, words = content
        if isinstance(sound, str) and isinstance(words, str):
            text = [{"type": "text", "text": words}] if words else []
            return [*text, {"type": "audio", "path": beside(sound, path.parent, place)}]
    raise UsageError(f"{place}: a message of type {kind!r} does not hold what that type needs")


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write ``NAME.jsonl``."""
    lines = []
    for _, row in rows:
        if "messages" not in row:
            sounds.lose("kimi holds dialogues; rows of other kinds are lost")
            continue
        for field in sorted(set(row) - _KEPT):
            sounds.lose(f"kimi has no place for {field!r}")
        conversation = [m for t in row["messages"] for m in _messages(t, row["id"], sounds)]
        answered = [m["message_type"] for m in conversation if m["role"] == "assistant"]
        task = "speech2speech" if "audio" in answered else "understanding"
        record = {"id": row["id"], "task_type": task, "conversation": conversation}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(sounds.folder / f"{name}.jsonl", "".join(lines))


def _messages(turn: dict[str, Any], name: str, sounds: Sounds) -> Iterator[dict[str, Any]]:
    for field in _LOST:
        if field in turn:
            sounds.lose(f"kimi has no place for {field!r} of a turn")
    for number, part in enumerate(turn["content"]):
        if part["type"] == "text":
            kind, content = "text", part["text"]
        elif "path" in part:
            kind = "audio"
            content = sounds.absolute(sounds.alone(part, f"{name}-{turn['role']}-{number}"))
            if part.keys() - {"type", "path", "start", "end"}:
                sounds.lose("kimi has no place for the words and codes of audio")
        else:
            sounds.lose("kimi holds sound, not codes; such parts are lost")
            continue
        yield {"role": turn["role"], "message_type": kind, "content": content}
