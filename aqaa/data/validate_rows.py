"""What a manifest row may look like: kinds, fields, roles, targets, codes, labels (no sound)."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aqaa.data.manifest import HUMAN
from aqaa.signals import (
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_CODES,
    SEMANTIC_PER_GROUP,
)

Add = Callable[[str, str], None]  # (code, message)

_COMMON = {"id", "kind", "source", "lang", "weight", "meta"}
_REQUIRED = {
    "chat": {"messages"},
    "preference": {"prompt", "chosen", "rejected"},
    "tts": {"text", "audio"},
    "asr": {"text", "audio"},
    "text": {"text"},
    "audio": {"audio"},
}
_OPTIONAL = {
    "chat": set[str](),
    "preference": {"margin", "reason"},
    "tts": {"speaker", "style", "prompt"},
    "asr": {"speaker", "style"},
    "text": set[str](),
    "audio": {"speaker", "style", "text"},
}
_MESSAGE_FIELDS = {"role", "content", "loss", "speaker", "style"}
_PART_FIELDS = {
    "text": {"type", "text"},
    "audio": {"type", "path", "start", "end", "sr", "text", "phones", "codes", "ref"},
}
_SAFE_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,200}")
_LONGEST_S = 1e7  # four months
_ROLES = ("system", *HUMAN, "assistant")
_BOOKS = {
    "linguistic": (LINGUISTIC_CODES, LINGUISTIC_PER_GROUP),
    "semantic": (SEMANTIC_CODES, SEMANTIC_PER_GROUP),
}


@dataclass(frozen=True)
class Labels:
    """Speaker and style names that a corpus declares (None: any)."""

    speakers: frozenset[str] | None = None
    styles: frozenset[str] | None = None


@dataclass
class AudioPart:
    """An audio part of a row, whether the user says it, and the text that it speaks."""

    part: dict[str, Any]
    human: bool
    text: str = ""


@dataclass
class Row:
    """What is left to check once a row's shape is known."""

    audio: list[AudioPart] = field(default_factory=list)
    words: int = 0


def check_row(row: dict[str, Any], labels: Labels, add: Add) -> Row:
    """Report what is wrong with ``row`` through ``add`` and return its audio parts."""
    kind = row.get("kind") or _inferred(row)
    if not isinstance(row.get("id"), str) or not row["id"]:
        add("E002", "field 'id' is missing or no text")
    elif not _SAFE_ID.fullmatch(row["id"]):
        add("E002", "field 'id' names files: letters, digits, . _ - only, and no . in front")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        add("E002", f"kind {kind!r} is not one of {', '.join(_REQUIRED)}")
        return Row()
    missing = sorted(_REQUIRED[kind] - set(row))
    unknown = sorted(set(row) - _REQUIRED[kind] - _OPTIONAL[kind] - _COMMON)
    for name in missing:
        add("E002", f"field {name!r} is missing in a row of kind {kind}")
    for name in unknown:
        add("E002", f"field {name!r} is not known in a row of kind {kind}; put it under meta")
    if missing:
        return Row()
    found = Row()
    if kind == "chat":
        _check_dialogue(row["messages"], "messages", found, labels, add)
    elif kind == "preference":
        _check_pair(row, found, labels, add)
    else:
        _check_flat(kind, row, found, labels, add)
    return found


def _inferred(row: dict[str, Any]) -> str | None:
    for kind, sign in (("chat", "messages"), ("preference", "chosen")):
        if sign in row:
            return kind
    if "audio" in row:
        return "tts" if "text" in row else "audio"
    return "text" if "text" in row else None


def _check_flat(kind: str, row: dict[str, Any], found: Row, labels: Labels, add: Add) -> None:
    """A row of kind tts, asr, text or audio."""
    _check_labels(row, labels, add)
    text = row.get("text", "")
    if "text" in _REQUIRED[kind] and not (isinstance(text, str) and text.strip()):
        add("E011", f"the text of this {kind} row is empty")
    text = text if isinstance(text, str) else ""
    found.words += len(text.split())
    for name in ("audio", "prompt"):
        if name in row:
            spoken = text if name == "audio" else ""
            _check_audio(row[name], name, AudioPart(row[name], False, spoken), found, add)


def _check_pair(row: dict[str, Any], found: Row, labels: Labels, add: Add) -> None:
    _check_dialogue(row["prompt"], "prompt", found, labels, add, prompt=True)
    ends = {}
    for side in ("chosen", "rejected"):
        messages = row[side]
        well_formed = _is_list_of_objects(messages) and messages
        if not well_formed or messages[-1].get("role") != "assistant":
            add("E003", f"{side} must be a list of messages that ends with the assistant")
            return
        # A side may repeat the dialogue it answers; then it must be the prompt's.
        if len(messages) > 1 and messages[:-1] != row["prompt"]:
            add("E010", f"the dialogue before the last message of {side} differs from prompt")
        ends[side] = messages[-1].get("content")
        _check_message(messages[-1], side, found, labels, add)
    if ends["chosen"] == ends["rejected"]:
        add("E009", "chosen and rejected are the same")


def _check_dialogue(
    messages: Any, name: str, found: Row, labels: Labels, add: Add, *, prompt: bool = False
) -> None:
    """Messages of a chat, which ends with the assistant, or a prompt, which ends with the human."""
    if not _is_list_of_objects(messages) or not messages:
        add("E002", f"{name} must be a list of messages with at least one entry")
        return
    _check_roles([message.get("role") for message in messages], name, add, prompt=prompt)
    for i, message in enumerate(messages):
        _check_message(message, f"{name}[{i}]", found, labels, add)


def _check_roles(roles: list[Any], name: str, add: Add, *, prompt: bool) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = [HUMAN if i % 2 == 0 else ("assistant",) for i in range(len(turns))]
    in_order = all(role in allowed for role, allowed in zip(turns, expected, strict=True))
    ends_well = bool(turns) and (turns[-1] == "assistant") != prompt
    if not (in_order and ends_well):
        add(
            "E003",
            f"roles of {name} are {', '.join(map(str, roles))}: after an optional system message "
            f"user and assistant take turns, the {'user' if prompt else 'assistant'} last",
        )


def _check_message(
    message: dict[str, Any], name: str, found: Row, labels: Labels, add: Add
) -> None:
    for key in sorted(set(message) - _MESSAGE_FIELDS):
        add("E002", f"field {key!r} of {name} is not known")
    role: Any = message.get("role")
    content: Any = message.get("content")
    if role not in _ROLES:
        add("E002", f"role {role!r} of {name} is not one of {', '.join(_ROLES)}")
    if not _is_list_of_objects(content):
        add("E002", f"content of {name} must be a list of parts")
        return
    _check_labels(message, labels, add)
    text = " ".join(str(p.get("text", "")) for p in content if p.get("type") == "text").strip()
    audio = [p for p in content if p.get("type") == "audio"]
    if role == "assistant" and message.get("loss", True) and not text and not audio:
        add("E011", f"{name} is to be learned but holds neither text nor audio")
    found.words += len(text.split())
    for i, part in enumerate(content):
        place = f"{name}.content[{i}]"
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _PART_FIELDS:
            add("E002", f"type {kind!r} of {place} is not text or audio")
            continue
        for key in sorted(set(part) - _PART_FIELDS[kind]):
            add("E002", f"field {key!r} of {place} is not known")
        if kind == "audio":
            spoken = part.get("text") or (text if len(audio) == 1 else "")
            _check_audio(part, place, AudioPart(part, role in HUMAN, str(spoken)), found, add)
        elif not isinstance(part.get("text"), str):
            add("E002", f"{place} has no text")


def _check_audio(part: Any, name: str, audio: AudioPart, found: Row, add: Add) -> None:
    if not isinstance(part, dict):
        add("E002", f"{name} must be an object with a path or codes")
        return
    if not any(part.get(key) for key in ("path", "codes", "ref")):
        add("E002", f"{name} has neither path nor codes nor ref")
    start_s, end_s = part.get("start", 0.0), part.get("end", _LONGEST_S)
    if not (_is_number(start_s) and _is_number(end_s) and 0 <= start_s < end_s <= _LONGEST_S):
        add("E002", f"{name} needs seconds as start and end, 0 <= start < end")
        return
    if not isinstance(part.get("path", ""), str):
        add("E002", f"{name} needs a text as path")
        return
    if not _is_number(part.get("sr", 1)) or part.get("sr", 1) <= 0:
        add("E002", f"{name} needs samples a second as sr, a number")
        return
    if "codes" in part:
        _check_codes(part["codes"], name, add)
    found.audio.append(audio)


def _check_codes(codes: Any, name: str, add: Add) -> None:
    if not isinstance(codes, dict) or set(codes) != set(_BOOKS):
        add("E002", f"codes of {name} must hold the lists linguistic and semantic, nothing else")
        return
    groups = []
    for book, (size, per_group) in _BOOKS.items():
        values = codes[book]
        if not isinstance(values, list) or not all(type(code) is int for code in values):
            add("E002", f"{book} codes of {name} must be a list of whole numbers")
            return
        outside = [code for code in values if not 0 <= code < size]
        if outside:
            add("E006", f"{book} code {outside[0]} of {name} lies outside 0..{size - 1}")
        groups.append(len(values) / per_group)
    if abs(groups[0] - groups[1]) > 1:  # an incomplete tail group is dropped later
        counts = ":".join(str(len(codes[book])) for book in _BOOKS)
        add("E007", f"linguistic and semantic codes of {name} stand {counts}, not about 2:3")


def _check_labels(holder: dict[str, Any], labels: Labels, add: Add) -> None:
    for key, known in (("speaker", labels.speakers), ("style", labels.styles)):
        value = holder.get(key)
        if known is not None and isinstance(value, str) and value not in known:
            add("E012", f"{key} {value!r} is not one of {', '.join(sorted(known))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
