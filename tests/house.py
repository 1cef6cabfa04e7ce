"""The laws of the house as functions over a source tree: each returns sentences, one per breach.

``root`` is a checkout: the folder that holds aqaa/, conf/, recipes/, tests/ and README.md.
"""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FILE_MEDIAN = 400, 130
FUNCTION_LINES, FUNCTION_MEDIAN = 80, 15
POSITIONAL_ARGUMENTS = 3  # a constructor with more takes them by name
CONSTRUCTOR_ARGUMENTS = 10  # about 8; a dataclass names its fields and may have more

# Rooms in the order of the signal; a room imports only from lines above its own.
FLOORS = (
    {"errors", "progress"},
    {"signals", "storage", "losses", "layers", "ranks"},
    {"vocabulary", "text", "lineage", "states"},
    {"grammar"},
    {"stream"},
    {"audio"},
    {"tokenizer", "backbone", "vocoder"},
    {"release"},
    {"pipeline"},
    {"data", "answer"},
    {"evaluation"},
    {"stages", "serving"},
    {"runtime"},
    {"cli"},
    {"__main__"},
)

# Where a dependency may be imported: files, or folders ending in a slash.
DOORS = {
    "lightning": ("stages/", "runtime/", "data/module.py"),
    "pytorch_lightning": (),
    "hydra": ("runtime/", "cli.py"),
    "omegaconf": ("runtime/", "cli.py"),
    "transformers": ("backbone/", "release/"),
    "peft": ("backbone/", "release/"),
    "deepspeed": ("runtime/",),
    "datasets": ("data/",),
    "wandb": ("runtime/log.py",),
    "torchaudio": ("audio/",),
    "soundfile": ("audio/",),
    "soxr": ("audio/", "data/espeak.py"),
    "espeakng_loader": ("data/espeak.py",),
    "pocketsphinx": ("evaluation/",),
    "parselmouth": ("evaluation/",),
    "tokenizers": ("text.py", "release/"),
    "yaml": ("runtime/", "release/"),
}

GLOBAL_GROUPS = ("preset", "debug")
# What stages have in common or are split into; any other file there is a stage.
SHARED = {"adversarial", "average", "language", "optimizer", "rows", "token_flow"}
_FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
_FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_RATES = {8000, 16000, 22050, 24000, 44100, 48000}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module of aqaa/ as (path inside aqaa, tree)."""
    for path in sorted((root / "aqaa").rglob("*.py")):
        yield path.relative_to(root / "aqaa").as_posix(), ast.parse(path.read_text("utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names a module imports, wherever it does; a relative one begins with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{a.name}" if base == "aqaa" else base) for a in node.names)


def floors(root: Path) -> list[str]:
    """Law 2: imports only go down, and rooms of one floor do not know each other."""
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    broken = []
    for name, tree in sources(root):
        room = name.split("/")[0].removesuffix(".py")
        names = list(imports(tree))
        if room == "__init__":
            broken += [f"aqaa/__init__.py imports {n}: it imports nothing" for n in names]
            continue
        if room not in floor_of:
            broken.append(f"aqaa/{name}: room {room} stands on no floor")
            continue
        for target in names:
            if target.startswith("."):
                broken.append(f"aqaa/{name}: relative import {target}")
            other = target.split(".")[1] if target.startswith("aqaa.") else room
            if other != room and floor_of.get(other, len(FLOORS)) >= floor_of[room]:
                broken.append(f"aqaa/{name} imports {target}, which is not below it")
    return broken


def doors(root: Path) -> list[str]:
    """Law 3: a dependency enters by its own door."""
    broken = []
    for name, tree in sources(root):
        for package in {target.split(".")[0] for target in imports(tree)}:
            allowed = DOORS.get(package, ("",))
            if not any(name == d or (name.startswith(d) and d[-1:] in ("/", "")) for d in allowed):
                broken.append(f"aqaa/{name} imports {package}, whose door is {allowed}")
    return broken


def sizes(root: Path) -> list[str]:
    """Law 4: small rooms."""
    files = {n: len((root / "aqaa" / n).read_text("utf-8").splitlines()) for n, _ in sources(root)}
    broken = [f"aqaa/{n} has {k} lines" for n, k in files.items() if k > FILE_LINES]
    if (median := statistics.median(k for k in files.values() if k > 3)) > FILE_MEDIAN:
        broken.append(f"the median file has {median:.0f} lines")
    lengths = []
    for name, tree in sources(root):
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
                if lengths[-1] > FUNCTION_LINES:
                    broken.append(f"aqaa/{name}: {node.name} has {lengths[-1]} lines")
    if lengths and (median := statistics.median(lengths)) > FUNCTION_MEDIAN:
        broken.append(f"the median function has {median:.0f} lines")
    return broken


def classes(root: Path) -> list[str]:
    """Law 4: one step of inheritance above a framework's class; constructors small and by name."""
    found = [(n, c) for n, t in sources(root) for c in ast.walk(t) if isinstance(c, ast.ClassDef)]
    ours = {c.name: {_last(base) for base in c.bases} for _, c in found}
    broken = []
    for name, node in found:
        for base in ours[node.name] & set(ours):
            if ours[base] & set(ours):
                broken.append(f"aqaa/{name}: {node.name} inherits more than one step from {base}")
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                count = len(method.args.args) - 1
                if count > POSITIONAL_ARGUMENTS:
                    broken.append(f"aqaa/{name}: {node.name} takes {count} positional arguments")
                if (count := count + len(method.args.kwonlyargs)) > CONSTRUCTOR_ARGUMENTS:
                    broken.append(f"aqaa/{name}: {node.name} takes {count} arguments")
    return broken


def docstrings(root: Path) -> list[str]:
    """Every module and every public class, function and method says what it is."""
    broken = []
    for name, tree in sources(root):
        if not ast.get_docstring(tree):
            broken.append(f"aqaa/{name} has no docstring")
        for scope in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
            if isinstance(scope, ast.ClassDef) and scope.name.startswith("_"):
                continue
            for node in scope.body:
                public = isinstance(node, _Function | ast.ClassDef) and node.name[0] != "_"
                if public and not ast.get_docstring(node):
                    broken.append(f"aqaa/{name}: {node.name} has no docstring")
    return broken


def units(root: Path) -> list[str]:
    """Law 7: sample rates are written in signals.py only, and shapes have a legend of letters."""
    broken = []
    for name, tree in sources(root):
        for node in ast.walk(tree):
            value = node.value if isinstance(node, ast.Constant) else None
            if name != "signals.py" and type(value) is int and value in _RATES:
                broken.append(f"aqaa/{name}:{node.lineno} writes the rate {value}")
        takes_tensors = any(isinstance(n, ast.Name) and n.id == "Tensor" for n in ast.walk(tree))
        if takes_tensors and "Letters:" not in (ast.get_docstring(tree) or ""):
            broken.append(f"aqaa/{name} handles tensors without a legend (`Letters: B …`)")
    return broken


def no_config_below_the_door(root: Path) -> list[str]:
    """Law 8: nothing below runtime/ takes a cfg."""
    broken = []
    for name, tree in sources(root):
        if name.split("/")[0] in ("runtime", "cli.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and node.arg in ("cfg", "conf"):
                broken.append(f"aqaa/{name}:{node.lineno} takes a {node.arg}")
    return broken


def safe_loading(root: Path) -> list[str]:
    """Law 10: nothing is unpickled and no text is run as code."""
    broken = []
    for name, tree in sources(root):
        broken += [
            f"aqaa/{name} imports {target}"
            for target in imports(tree)
            if target.split(".")[0] in _FORBIDDEN_MODULES
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (reason := _unsafe(node)):
                broken.append(f"aqaa/{name}:{node.lineno} calls {reason}")
    return broken


def _unsafe(call: ast.Call) -> str | None:
    called = ast.unparse(call.func)
    options = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if called in _FORBIDDEN_CALLS or called in ("yaml.load", "yaml.unsafe_load"):
        return called
    if called == "torch.load" and options.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    for option, value in (("weights_only", "False"), ("allow_pickle", "True")):
        if options.get(option) == value:
            return f"{called} with {option}={value}"
    return None


def stages(root: Path) -> list[str]:
    """Law 1: one name, five rooms."""
    readme = root / "README.md"
    text = readme.read_text("utf-8") if readme.is_file() else ""
    headings = " ".join(re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    broken = []
    for path in sorted((root / "aqaa" / "stages").glob("[!_]*.py")):
        name = path.stem
        if name in SHARED:
            continue
        for room in (f"conf/{name}.yaml", f"recipes/{name}.py", f"tests/stages/test_{name}.py"):
            if not (root / room).is_file():
                broken.append(f"stage {name} has no {room}")
        if not re.search(rf"\b{name}\b", headings):
            broken.append(f"stage {name} has no heading in README.md")
    return broken


def packages(root: Path) -> list[str]:
    """Law 5: a group's folder is its package; only presets speak of the whole config."""
    broken = []
    for path in sorted((root / "conf").rglob("*.yaml")):
        name = path.relative_to(root / "conf").as_posix()
        headers = re.findall(r"^#\s*@package\s+(\S+)", path.read_text("utf-8"), re.MULTILINE)
        wanted = ["_global_"] if name.split("/")[0] in GLOBAL_GROUPS else []
        if headers != wanted:
            broken.append(f"conf/{name} has the package header {headers}, not {wanted}")
    return broken


def _last(base: ast.expr) -> str:
    return ast.unparse(base).split("[")[0].split(".")[-1]
