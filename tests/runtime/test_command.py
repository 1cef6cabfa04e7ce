"""One verb performed: shown, run, and the error of use behind what a target raises."""

from pathlib import Path

import pytest

from aqaa.errors import UsageError
from aqaa.runtime.command import error_of_use, perform
from aqaa.runtime.verbs import VERBS
from aqaa.storage import read_json


def raised(*chain: Exception) -> Exception:
    """The last error, raised from the one before, and so on."""
    for cause, error in zip(chain, chain[1:], strict=False):
        error.__cause__ = cause
    return chain[-1]


def test_the_error_of_use_is_found_behind_others() -> None:
    wrong = UsageError("q.wav is silent")
    assert error_of_use(wrong) is wrong
    assert error_of_use(raised(wrong, RuntimeError("in call"), ValueError("outer"))) is wrong
    assert error_of_use(raised(KeyError("k"), RuntimeError("in call"))) is None
    hidden = RuntimeError("a mistake of ours")
    hidden.__context__ = wrong  # raised while handling it, not because of it
    assert error_of_use(hidden) is None


def test_showing_a_config_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    perform(VERBS["merge"], [f"out={tmp_path / 'out'}", "weights=[5,1]"], show=True)
    shown = capsys.readouterr().out
    assert f"out: {tmp_path / 'out'}\n" in shown and "_target_: aqaa.stages.merge.merge" in shown
    assert not (tmp_path / "out").exists()
    perform(VERBS["answer"], [], show=True)  # what must be given may stay open
    assert "question: ???" in capsys.readouterr().out


def test_a_verb_runs_and_its_path_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader", reason="the demo extra is not installed")
    out = tmp_path / "corpus"
    words = ["questions=4", "validation=2", "test=2", "workers=1", "families=[snd]"]
    perform(VERBS["data synthesize"], [f"out={out}", *words])
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    # Lists and numbers arrive plain.
    assert read_json(out / "domain.json")["counts"] == {"train": 4, "validation": 2, "test": 2}


def test_a_verb_that_fails_raises_what_can_be_told(tmp_path: Path) -> None:
    words = [f"models=[{tmp_path}/a]", "weights=[1]", f"out={tmp_path / 'out'}"]
    with pytest.raises(Exception) as info:
        perform(VERBS["merge"], words)
    cause = error_of_use(info.value)
    assert cause is not None and f"{tmp_path}/a does not exist" in str(cause)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["models=[a]", "weihgts=[1]"], "merge has no key weihgts"),
        (["_target_=os.system"], "os.system"),
        (["+extra=1"], "extra"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        perform(VERBS["merge"], [f"out={tmp_path / 'out'}", *words])
    assert not (tmp_path / "out").exists()


def test_a_training_verb_goes_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from aqaa.runtime import run

    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(run, "train", lambda verb, cfg: seen.append((verb, cfg.run.steps)))
    perform(VERBS["vocoder"], ["preset=walkthrough/vocoder_flow", "run.steps=7"])
    assert seen == [("vocoder", 7)]
