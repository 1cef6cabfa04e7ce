"""The table of what is written and heard: by check, replaced where a check is done again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqaa.audio.file import write_audio
from aqaa.evaluation import agreement
from aqaa.evaluation.agreement import FOLDER, PAGE, hear_prompts, read_table, shares

SAID = {"a": "yes", "b": "no", "c": ""}


def answers(*_: Any, out: Path, **__: Any) -> Any:
    """Stands for the model: it says what it writes, but for the mute ``c``."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for number, (name, text) in enumerate(SAID.items()):
        sound = f"audio/{name}.wav" if text else ""
        if sound:
            write_audio(out / sound, np.full(1600 * (number + 2), 0.1, np.float32), 16_000)
        yield {
            "id": name, "question": "", "question_text": f"<{name}>", "expected": "yes",
            "text": text, "answer": sound, "family": "f", "style": "plain", "held_out": False,
            "voice": "v", "tokens": [],
        }  # fmt: skip


def ear(samples: np.ndarray) -> str:
    return {3200: "yes", 4800: "yes"}[len(samples)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agreement, "infer", answers)
    return tmp_path


def check(run: Path, step: int) -> list[dict[str, Any]]:
    found: Any = hear_prompts(None, None, [], ear=ear, run=run, step=step)  # type: ignore[arg-type]
    return list(found)


def test_a_row_says_what_agrees(run: Path) -> None:
    rows = check(run, 5)
    verdicts = [(r["agrees"], r["text_right"], r["spoken_right"]) for r in rows]
    assert verdicts == [(True, True, True), (False, False, True), (False, False, False)]
    assert [row["heard"] for row in rows] == ["yes", "yes", ""]
    wanted = {"agrees": 1 / 3, "text_right": 1 / 3, "spoken_right": 2 / 3}
    assert shares(rows) == pytest.approx(wanted)
    assert [row["answer"] for row in read_table(run)] == [
        *(f"step_00000005/audio/{name}.wav" for name in "ab"), ""
    ]  # fmt: skip


def test_checks_follow_one_another_and_later_ones_of_a_cut_run_go(run: Path) -> None:
    for step in (5, 10, 15):
        check(run, step)
    assert [row["step"] for row in read_table(run)] == ["5"] * 3 + ["10"] * 3 + ["15"] * 3
    check(run, 10)
    assert [row["step"] for row in read_table(run)] == ["5"] * 3 + ["10"] * 3
    page = (run / FOLDER / PAGE).read_text()
    assert "At step 10" in page and page.count("<tr><th scope=row>") == 6
    assert "&lt;a&gt;" in page and "<a>" not in page
    assert page.index("<th scope=row>10") < page.index("<th scope=row>5")
