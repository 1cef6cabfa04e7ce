"""`aqaa listen`: stored codes become sound again."""

from pathlib import Path

import numpy as np
import pytest

from aqaa import cli
from aqaa.audio.file import read_audio
from aqaa.data.listen import listen
from aqaa.data.token_store import TokenStore
from aqaa.data.tokenize import tokenize
from aqaa.errors import UsageError
from aqaa.signals import GROUP_S
from aqaa.storage import verify_manifest
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.vocoder import Vocoder
from aqaa.vocoder.waveform import WaveformHead
from tests.conftest import Chain


def voice(chain: Chain) -> dict[str, str]:
    return {part: f"{chain.folder}/vocoder_{part}/model" for part in ("flow", "waveform")}


@pytest.fixture(scope="module")
def lean(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose questions carry one book."""
    out = tmp_path_factory.mktemp("lean") / "tokens"
    books = {b: f"{chain.folder}/tokenizer_{b}/model" for b in ("linguistic", "semantic")}
    tokenize(
        corpus=str(chain / "corpus"), **books, out=str(out), question_books="linguistic"
    )
    return out


def test_the_first_clips_are_spoken(chain: Chain, tmp_path: Path) -> None:
    out = listen(source=str(chain / "tokens"), **voice(chain), out=str(tmp_path / "out"), count=3)
    store = TokenStore(chain / "tokens")
    names = {key.replace("/", "-"): key for key in store.keys()[:3]}
    assert verify_manifest(out)
    assert {p.stem for p in out.glob("*.wav")} == names.keys()
    vocoder = Vocoder(
        FlowVocoder.load(voice(chain)["flow"]), WaveformHead.load(voice(chain)["waveform"])
    )
    for name, key in names.items():
        heard = read_audio(out / f"{name}.wav")
        assert heard.duration_s == pytest.approx(float(store[key].groups * GROUP_S))
        spoken = vocoder.speak(store[key]).samples
        assert np.abs(heard.samples - spoken).max() < 2 / 2**15


@pytest.mark.parametrize("many", [True, False])
def test_chosen_clips_are_spoken_from_the_command_line(
    many: bool, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    key = next(k for k in TokenStore(chain / "tokens").keys() if k.startswith("test/"))
    words = [f"{part}={path}" for part, path in voice(chain).items()]
    words += [f"keys=[{key}]" if many else f"keys={key}", f"out={tmp_path / 'out'}"]
    assert cli.main(["listen", str(chain / "tokens"), *words]) == 0
    found = [p.name for p in (tmp_path / "out").glob("*.wav")]
    assert found == [f"{key.replace('/', '-')}.wav"]


def test_the_flow_is_solved_as_asked(chain: Chain, tmp_path: Path) -> None:
    store = TokenStore(chain / "tokens")
    vocoder = Vocoder(
        FlowVocoder.load(voice(chain)["flow"]), WaveformHead.load(voice(chain)["waveform"]),
        steps=4, guidance=0.5, solver="midpoint",
    )  # fmt: skip
    key, ways = store.keys()[0], {"steps": 4, "guidance": 0.5, "solver": "midpoint"}
    out = listen(source=str(store.folder), **voice(chain), out=str(tmp_path), count=1, **ways)  # type: ignore[arg-type]
    heard = read_audio(out / f"{key.replace('/', '-')}.wav").samples
    assert np.abs(heard - vocoder.speak(store[key]).samples).max() < 2 / 2**15
    vocoder.guidance = 0.0
    assert np.abs(heard - vocoder.speak(store[key]).samples).max() > 1e-3


def test_answers_are_chosen_where_questions_carry_one_book(
    lean: Path, chain: Chain, tmp_path: Path
) -> None:
    out = listen(source=str(lean), **voice(chain), out=str(tmp_path / "out"), count=2)
    assert [p.name.startswith("answers-") for p in out.glob("*.wav")] == [True, True]


def test_errors_of_use_are_one_sentence_and_leave_nothing(
    lean: Path, chain: Chain, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    question = next(k for k in TokenStore(lean).keys() if k.startswith("test/"))
    tokens, answer = str(chain / "tokens"), "answers/a"
    for settings, sentence in (
        ({"source": str(lean), "keys": [question]}, f"lacks a book of {question}: tokenize with"),
        ({"source": tokens, "keys": [answer]}, "holds no codes of answers/a"),
        ({"source": tokens, "keys": []}, "keys=[]: name at least one clip"),
        ({"source": tokens, "count": 0}, "count=0: at least one clip is needed"),
        ({"source": str(tmp_path)}, "is not a token store"),
        ({"source": tokens, "flow": str(tmp_path)}, "config.json does not exist"),
    ):
        with pytest.raises(UsageError) as info:
            listen(**{**voice(chain), "out": str(out), **settings})  # type: ignore[arg-type]
        assert sentence in str(info.value) and "\n" not in str(info.value)
        assert not out.exists()
