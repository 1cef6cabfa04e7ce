"""The README and the pages say what is there: no dead link, no file left out, none made up."""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from omegaconf import OmegaConf as YAML

from tests.house import SHARED

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "recipes").glob("*.md")])
PROSE = sorted([*PAGES, *(ROOT / "recipes").glob("*.py"), ROOT / "slurm" / "launch.sh"])
SIZED = sorted(
    path
    for path in (ROOT / "conf" / "preset" / "walkthrough").glob("*.yaml")
    if path.stem not in ("smoke", "long")
)
HOSTS = ("arxiv.org", "keepachangelog.com")
# Words about how this was made rather than what it is.
FOREIGN = r"\b(session|sessions|helper|helpers|issue \d+|TODO|FIXME)\b|(?<!\w)#\d+"
NEVER_LISTED = ("__pycache__", "*.egg-info", ".git", ".hypothesis", ".DS_Store")


def page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_readme_can_be_read_in_one_go() -> None:
    assert 120 <= len(README.splitlines()) <= 220


def test_there_is_a_heading_for_every_stage() -> None:
    headings = re.findall(r"^### (\w+)$", README, re.MULTILINE)
    stages = {p.stem for p in (ROOT / "aqaa" / "stages").glob("[!_]*.py")}
    assert set(headings) == stages - SHARED


def test_every_preset_is_named_under_its_stage() -> None:
    stages = README.partition("## Stages and their presets")[2]
    names = {p.relative_to(ROOT / "conf" / "preset").with_suffix("").as_posix()
             for p in (ROOT / "conf" / "preset").rglob("*.yaml")}  # fmt: skip
    for name in re.findall(r"`((?:walkthrough|paper|speech)/\w+)`", stages):
        assert name in names, f"README names the preset {name}, which does not exist"
    same = [n for n in names if n.startswith("paper/") and f"walkthrough/{n[6:]}" in names]
    whole_chain = {"walkthrough/smoke", "walkthrough/long"}
    for name in names - whole_chain - set(same):
        assert f"`{name}`" in stages, f"README does not name the preset {name}"


def _ignored(name: str) -> bool:
    patterns = [p.strip("/") for p in (ROOT / ".gitignore").read_text().split()]
    return any(fnmatch(name, pattern) for pattern in (*patterns, *NEVER_LISTED))


def _listed() -> dict[str, set[str]]:
    """Names in the tree by folder: '' for the checkout, 'aqaa' for the package."""
    tree = re.search(r"## The tree\n\n```text\n(.*?)^```", README, re.M | re.S)
    assert tree is not None
    found: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in tree.group(1).splitlines():
        name, phrase = line.split(maxsplit=1)
        assert phrase, f"{name} has no phrase"
        if line.startswith("  "):
            found[folder].add(name)
        else:
            folder = name.strip("/")
            found[""].add(name)
            found.setdefault(folder, set())
    return found


@pytest.mark.parametrize("folder", ["", "aqaa"])
def test_the_tree_names_what_is_there(folder: str) -> None:
    there = {
        f"{p.name}/" if p.is_dir() else p.name
        for p in (ROOT / folder).iterdir()
        if not _ignored(p.name) and (p.is_file() or any(f.is_file() for f in p.rglob("*")))
    }
    assert _listed()[folder] == there


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{page(path)} links to {link}"
        if anchor:
            assert anchor in _anchors(target.read_text("utf-8")), f"{page(path)}: no {link}"


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_files_that_are_named_exist(path: Path) -> None:
    named = r"`((?:aqaa|tests|recipes|slurm|conf)/[\w./]+\.(?:py|md|sh|yaml))`"
    for name in re.findall(named, path.read_text("utf-8")):
        assert (ROOT / name).is_file(), f"{page(path)} names {name}"


@pytest.mark.parametrize("path", PROSE, ids=page)
def test_the_prose_is_about_the_project(path: Path) -> None:
    text = path.read_text("utf-8")
    hosts = re.findall(r"https?://([\w.-]+)", text)
    assert set(hosts) <= set(HOSTS), hosts
    assert not re.search(r"\b[\w-]+\.(?:com|io|net|dev|ai)\b", re.sub(r"https?://\S+", "", text))
    assert not re.findall(FOREIGN, text, re.IGNORECASE)


def test_the_ledger_gives_every_claim_a_status() -> None:
    ledger = (ROOT / "recipes" / "README.md").read_text("utf-8").partition("## Ledger")[2]
    known = ("toy", "implemented", "our choice", "unknown", "not yet", "composed", "layouts")
    for line in ledger.partition("### Ours")[0].splitlines():
        if line.startswith("| ") and not line.startswith("| claim"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 4, line
            assert cells[3].startswith(known), line
            tests = re.findall(r"`(tests/[^`]+)`", cells[2])
            assert tests or cells[2] == "none", line
            for name in tests:
                assert (ROOT / name).is_file(), f"the ledger names {name}, which does not exist"


@pytest.mark.parametrize("preset", SIZED, ids=lambda path: path.stem)
def test_a_page_says_how_many_steps_its_preset_takes(preset: Path) -> None:
    steps = YAML.load(preset).run.steps
    text = (ROOT / "recipes" / f"{preset.stem.split('_')[0]}.md").read_text("utf-8")
    assert re.search(rf"(?<![\d,]){steps:,}(?![\d,])", text), f"{preset.name}: {steps:,} steps"
    assert YAML.load(ROOT / "conf" / "walkthrough.yaml").steps[preset.stem] == steps


def test_pages_state_the_sizes_of_the_configuration() -> None:
    pairs = YAML.load(ROOT / "conf" / "data_pairs.yaml")
    noise = f"{pairs.prompts} training questions with {100 * pairs.code_noise:.0f} %"
    assert noise in (ROOT / "recipes" / "dpo.md").read_text("utf-8")
    corpus = YAML.load(ROOT / "conf" / "data_synthesize.yaml")
    sizes = f"{corpus.questions:,} training questions, {corpus.validation} for validation"
    text = (ROOT / "recipes" / "data.md").read_text("utf-8")
    assert f"{sizes}, {corpus.test} for testing" in text
    noise = YAML.load(ROOT / "conf" / "data" / "dialogues.yaml").code_noise
    text = (ROOT / "recipes" / "pretrain.md").read_text("utf-8")
    assert f"{100 * noise:.0f} % of the question's codes" in text


@pytest.mark.parametrize("beside", [True, False])
def test_the_build_machine_needs_no_recorded_speech(beside: bool, tmp_path: Path) -> None:
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$@" "${AQAA_SPEECH_DIR:-none}"\n')
    make.chmod(0o755)
    speech = tmp_path / "shared" / "data"
    if beside:
        speech.mkdir(parents=True)
    done = subprocess.run(
        ["bash", str(script)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"test {speech if beside else 'none'}\n"
