"""The Dockerfile, which is not built here, says nothing that the checkout contradicts."""

import re
import shlex
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    requirement.name: str(requirement.specifier).removeprefix("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def stages() -> dict[str, list[list[str]]]:
    """Instructions of every target as words, those of the stage it stands on first."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, list[list[str]]] = {}
    here: list[list[str]] = []
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        words = shlex.split(line)
        if words[0] == "FROM":
            here = list(found.get(words[1], []))
            found[words[3]] = here
        here.append(words)
    return found


def of(target: str, instruction: str) -> list[list[str]]:
    return [words[1:] for words in stages()[target] if words[0] == instruction]


def test_there_is_a_target_for_cpus_and_one_for_gpus() -> None:
    assert set(stages()) == {"base", "cpu", "cuda"}
    for target in ("cpu", "cuda"):
        assert of(target, "ENTRYPOINT") == [["[aqaa]"]] and of(target, "CMD") == [["[doctor]"]]


def test_what_it_copies_is_there() -> None:
    for words in of("base", "COPY"):
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
    copied = {source for words in of("base", "COPY") for source in words[:-1]}
    needed = {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], "aqaa", "conf"}
    assert needed | set(PROJECT["project"]["license-files"]) <= copied


def test_python_is_the_one_that_the_pins_were_made_for() -> None:
    (argument,) = re.findall(r"^ARG PYTHON=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    version = argument.partition("-")[0]
    assert version == PROJECT["tool"]["mypy"]["python_version"]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)
    assert stages()["base"][0][1] == "python:${PYTHON}"


def installs(target: str) -> list[list[str]]:
    return [words[2:] for words in of(target, "RUN") if words[:2] == ["pip", "install"]]


def test_the_pins_hold_in_both() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("cpu", "cuda"):
        settings = dict(word.split("=", 1) for words in of(target, "ENV") for word in words)
        (place,) = of(target, "WORKDIR")
        assert settings["PIP_CONSTRAINT"] == f"{place[0]}/constraints.txt"
        assert settings["DS_BUILD_OPS"] == "0"
        for words in installs(target):
            for name, version in re.findall(r"^([a-z]+)==(.*)$", "\n".join(words), re.MULTILINE):
                assert version == PINS.get(name) or f"{name}=={version}" in makefile, words
        extras = re.findall(r"\.\[(.*)\]", installs(target)[-1][-1])
        assert extras and set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_only_the_cpu_target_takes_the_cpu_build_of_torch() -> None:
    cpu, cuda = (" ".join(word for words in installs(t) for word in words) for t in ("cpu", "cuda"))
    assert "whl/cpu" in cpu and f"torch=={PINS['torch']}" in cpu
    assert "index" not in cuda and "cpu" not in cuda  # the package index's torch is built for CUDA
    assert "g++" in [word for words in of("cuda", "RUN") for word in words]


def test_the_pinned_pip_is_the_makefiles() -> None:
    (pip,) = re.findall(r"pip==[\d.]+", (ROOT / "Makefile").read_text())
    for target in ("cpu", "cuda"):
        assert installs(target)[0] == [pip]
    assert Path(ROOT / "Dockerfile").read_text().index("COPY pyproject.toml") < (
        (ROOT / "Dockerfile").read_text().index("RUN pip install")
    )  # the pins must be there before pip looks for them
