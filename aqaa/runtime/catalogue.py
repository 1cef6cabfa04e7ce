"""What conf/ offers, read as plain YAML: groups, options, keys with their notes, presets that fit.

Hydra composes; this module only looks, so that help and errors of use answer at once.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from aqaa.errors import UsageError

# Groups whose files speak about the whole config instead of their own branch.
GLOBAL_GROUPS = ("preset", "debug")
_COMMENT = re.compile(r"\s#\s*(.+)$")
_COMMAND = re.compile(r"^#.*\baqaa ([a-z]+(?: [a-z]+)?) preset=", re.MULTILINE)
_REFERENCE = re.compile(r"\$\{(\w[\w.]*)\}")


@dataclass(frozen=True)
class Key:
    """One leaf of a config: its full dotted name, its default as YAML text, its comment.

    An option that sets nothing is one leaf with the value ''.
    """

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Entry:
    """One line of a defaults list; ``group`` is '' for the file's own ``_self_``."""

    group: str
    option: str | None
    package: str
    override: bool


def conf_dir() -> Path:
    """The configuration folder: ``aqaa/conf`` of a wheel, else ``conf`` beside the package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise UsageError(f"no conf folder in {package} or beside it: install aqaa again")


def root_name(verb: str) -> str:
    """``data synthesize`` -> ``data_synthesize``, the root file's name."""
    return verb.replace(" ", "_")


def options(group: str, conf: Path | None = None) -> list[str]:
    """Every option of a group, nested ones as ``paper/sft_1``, sorted."""
    folder = (conf or conf_dir()) / group
    names = (p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    return sorted(names)


def groups(verb: str, conf: Path | None = None) -> dict[str, str | None]:
    """The groups a verb's root names, each with the option it chooses by default."""
    root = (conf or conf_dir()) / f"{root_name(verb)}.yaml"
    if not root.is_file():
        raise UsageError(f"{verb} has no configuration: {root} does not exist")
    return {entry.group: entry.option for entry in _entries(root) if entry.group}


def keys(
    verb: str, choices: Mapping[str, str | None] | None = None, conf: Path | None = None
) -> dict[str, Key]:
    """All leaves of a verb's config under the given choices of groups (else the root's own)."""
    conf = conf or conf_dir()
    root = conf / f"{root_name(verb)}.yaml"
    chosen = groups(verb, conf) | dict(choices or {})
    found: dict[str, Key] = {}
    for entry in _entries(root):
        if not entry.group:
            found |= _leaves(root, "")
        elif entry.group not in GLOBAL_GROUPS and (option := chosen.get(entry.group)):
            found |= _option_leaves(conf, entry.group, option, entry.package)
    return _without_filled(found)


def misfit(
    verb: str,
    group: str,
    option: str,
    choices: Mapping[str, str | None] | None = None,
    conf: Path | None = None,
) -> str | None:
    """Why a preset (or debug) option cannot be used with a verb, or None if it can.

    A preset may set only what the verb has, and where its head shows the command
    (``# aqaa sft preset=…``) it is for that verb alone.

    ``choices`` are groups chosen on the command line, which beat the preset's.
    """
    conf = conf or conf_dir()
    text = (conf / group / f"{option}.yaml").read_text(encoding="utf-8")
    meant = _COMMAND.findall(text)
    if meant and verb not in meant:
        return f"it is written for {' and '.join(sorted(set(meant)))}"
    chosen = groups(verb, conf)
    for name, choice in overridden(group, option, conf).items():
        if name not in chosen:
            return f"it chooses {name}, a group that {verb} lacks"
        chosen[name] = choice
    known = keys(verb, chosen | dict(choices or {}), conf)
    # An empty mapping of the root is room left for presets to fill; keys beside a target that the
    # preset names are checked against that target, when it is bound.
    rooms = [key.name for key in known.values() if key.value == "{}"]
    rooms += retargeted(group, option, conf)
    open_ends = tuple(f"{name}." for name in rooms)
    for name in leaves(group, option, conf):
        if name not in known and not name.startswith(open_ends) and not _is_branch(name, known):
            return f"it sets {name}, which {verb} lacks"
    return None


def leaves(group: str, option: str, conf: Path | None = None) -> dict[str, Key]:
    """All leaves that a preset (or debug) option sets."""
    return _option_leaves(conf or conf_dir(), group, option, "")


def retargeted(group: str, option: str, conf: Path | None = None) -> list[str]:
    """Top branches whose ``_target_`` a preset names itself."""
    document = _document((conf or conf_dir()) / group / f"{option}.yaml")
    pairs = document.value if isinstance(document, yaml.MappingNode) else []
    return [
        key.value
        for key, value in pairs
        if isinstance(value, yaml.MappingNode)
        and any(inner.value == "_target_" for inner, _ in value.value)
    ]


def overridden(group: str, option: str, conf: Path | None = None) -> dict[str, str | None]:
    """The groups a preset chooses (its ``override /group: option`` lines)."""
    entries = _entries((conf or conf_dir()) / group / f"{option}.yaml")
    return {entry.group: entry.option for entry in entries if entry.override}


def unmet(verb: str, group: str, option: str, conf: Path | None = None) -> str | None:
    """Why an option cannot be used with a verb: a key it refers to (``${parents.tokens}``)."""
    found = keys(verb, {group: option}, conf)
    for key in found.values():
        if key.name.startswith(f"{group.replace('/', '.')}."):
            for name in _REFERENCE.findall(key.value):
                if name not in found and not _is_branch(name, found):
                    return f"it refers to {name}, which {verb} lacks"
    return None


def fitting(verb: str, group: str = "preset", conf: Path | None = None) -> list[str]:
    """The options of a group that can be used with a verb."""
    if group not in groups(verb, conf):
        return []
    judge = misfit if group in GLOBAL_GROUPS else unmet
    return [name for name in options(group, conf) if judge(verb, group, name, conf=conf) is None]


def nearest(name: str, candidates: list[str]) -> str | None:
    """The candidate a typist most likely meant; an equal or alike last part counts as well."""
    tail = _tail(name)
    for candidate in candidates:
        if _tail(candidate) == tail:
            return candidate
    begun = [candidate for candidate in candidates if candidate.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    if close := difflib.get_close_matches(name, candidates, n=1, cutoff=0.6):
        return close[0]
    tails = {_tail(candidate): candidate for candidate in reversed(candidates)}
    close = difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)
    return tails[close[0]] if close else None


def _tail(name: str) -> str:
    """The last part of a key (``optim.lr``) or of an option (``paper/sft_1``)."""
    return re.split(r"[./]", name)[-1]


def _is_branch(name: str, known: Mapping[str, Key]) -> bool:
    return any(other.startswith(f"{name}.") for other in known)


def _without_filled(found: dict[str, Key]) -> dict[str, Key]:
    """Drop empty mappings that another file of the composition fills."""
    return {n: k for n, k in found.items() if k.value not in ("", "{}") or not _is_branch(n, found)}


def _option_leaves(conf: Path, group: str, option: str, package: str) -> dict[str, Key]:
    path = conf / group / f"{option}.yaml"
    if not path.is_file():
        return {}
    found: dict[str, Key] = {}
    for entry in _entries(path):
        if not entry.group:
            found |= _leaves(path, package)
        elif not entry.override and entry.option:
            inner = f"{package}.{entry.package}".strip(".") if entry.package else package
            found |= _option_leaves(
                conf, f"{group}/{entry.group}".rstrip("/."), entry.option, inner
            )
    return found


def _entries(path: Path) -> list[Entry]:
    """The defaults list of a file, read the way Hydra reads it."""
    document = _document(path)
    listed = [_value(item) for item in _defaults(document)]
    entries = [_entry(item) for item in listed]
    if not any(entry == _SELF for entry in entries):
        entries.append(_SELF)
    return entries


_SELF = Entry("", None, "", False)


def _entry(item: object) -> Entry:
    if item == "_self_":
        return _SELF
    if isinstance(item, str):  # a sibling option of the same group
        return Entry(".", item, "", False)
    if not isinstance(item, dict) or len(item) != 1:
        raise UsageError(f"defaults entry {item!r} is neither a name nor one `group: option`")
    words, option = next(iter(item.items()))
    *flags, name = str(words).split()
    group, _, package = name.lstrip("/").partition("@")
    package = "" if package == "_global_" else package or group.replace("/", ".")
    return Entry(group, option, package, "override" in flags)


def _leaves(path: Path, package: str) -> dict[str, Key]:
    lines = path.read_text(encoding="utf-8").splitlines()
    document = _document(path)
    pairs = document.value if isinstance(document, yaml.MappingNode) else []
    found: list[Key] = []
    for key, value in pairs:
        if key.value != "defaults":
            found += _pair(key, value, package, lines)
    # An option that is nothing (`none`) is still a branch, but no room to be filled.
    return {k.name: k for k in found} or ({package: Key(package, "", "")} if package else {})


def _pair(key: yaml.Node, value: yaml.Node, name: str, lines: list[str]) -> Iterator[Key]:
    if not (key.value.startswith("_") and key.value.endswith("_")):
        yield from _walk(value, f"{name}.{key.value}".lstrip("."), lines)


def _walk(node: yaml.Node, name: str, lines: list[str]) -> Iterator[Key]:
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _pair(key, value, name, lines)
        return
    start, end = node.start_mark, node.end_mark
    if isinstance(node, yaml.ScalarNode):
        text = node.value or ("null" if node.tag.endswith("null") else "''")
    else:
        text = " ".join(lines[start.line : end.line + 1])[start.column :].split(" #")[0].strip()
        text = text if isinstance(node, yaml.MappingNode) or text.startswith("[") else "[…]"
    line = lines[start.line] if start.line < len(lines) else ""
    comment = _COMMENT.search(line[end.column if end.line == start.line else start.column :])
    yield Key(name, "{}" if text.startswith("{}") else text, comment[1] if comment else "")


@cache
def _parse(path: Path, stamp_ns: int) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _document(path: Path) -> yaml.Node | None:
    return _parse(path, path.stat().st_mtime_ns)


def _defaults(document: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(document, yaml.MappingNode):
        for key, value in document.value:
            if key.value == "defaults":
                return list(value.value)
    return []


def _value(node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _value(value) for key, value in node.value}
    return None if node.tag.endswith(":null") else node.value
