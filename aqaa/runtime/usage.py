"""Help pages, read off conf/ without composing anything."""

import textwrap
from pathlib import Path

from aqaa.runtime import catalogue
from aqaa.runtime.verbs import VERBS, Verb, family

_WIDTH = 100
_INDENT = "  "


def overview() -> str:
    """The page of ``aqaa --help``: every verb with its sentence and its example."""
    lines = [
        "aqaa: speech in, speech out, every stage trainable.",
        "",
        "usage: aqaa VERB [key=value | group=option | preset=name] …",
        "       aqaa VERB --help      what the verb can be told",
        "       aqaa VERB --cfg job   the composed configuration, nothing is run",
        "",
    ]
    for verb in VERBS.values():
        lines += [f"{verb.name:<16} {verb.summary}", f"{'':<16} $ {verb.example}"]
    return "\n".join(lines)


def family_page(word: str) -> str:
    """The page of ``aqaa data --help``."""
    lines = [f"usage: aqaa {word} VERB [key=value] …", ""]
    for verb in family(word):
        lines += [f"{verb.name:<16} {verb.summary}", f"{'':<16} $ {verb.example}"]
    return "\n".join(lines)


def page(verb: Verb, conf: Path | None = None) -> str:
    """The page of ``aqaa VERB --help``: groups, presets, keys with defaults, one example."""
    word = (verb.positional or "").upper()
    settings = " [key=value …]" if verb.configured else ""
    lines = [f"{verb.name}: {verb.summary}", ""]
    lines.append(f"usage: aqaa {verb.name}{f' [{word}]' if word else ''}{settings}")
    if word:
        lines.append(f"       {word} stands for {verb.positional}={word}")
    if verb.configured:
        lines += _groups(verb, conf) + _keys(verb, conf)
    return "\n".join([*lines, "", "example:", f"{_INDENT}$ {verb.example}"])


def _groups(verb: Verb, conf: Path | None) -> list[str]:
    lines: list[str] = []
    for group, default in catalogue.groups(verb.name, conf).items():
        fitting = catalogue.fitting(verb.name, group, conf)
        names = [f"{n}*" if n == default else n for n in fitting]
        if names:
            text = f"{group}={' | '.join(names)}"
            lines += textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT * 3,
                break_on_hyphens=False,
            )
    return ["", "groups (* is the default):", *lines] if lines else []


def _keys(verb: Verb, conf: Path | None) -> list[str]:
    rows = []
    for key in catalogue.keys(verb.name, conf=conf).values():
        if not key.value:
            continue
        text = f"{_INDENT}{key.name}={key.value}"
        rows.append(f"{text:<48}  {key.note}".rstrip() if key.note else text)
    return ["", "keys with their defaults (??? must be given):", *rows] if rows else []
