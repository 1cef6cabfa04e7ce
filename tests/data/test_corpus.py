"""A corpus that somebody else made: what is found in its rows, what is refused and how."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqaa.audio.file import write_audio
from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.data.speech import SpeechBatches
from aqaa.errors import UsageError
from aqaa.storage import write_json
from tests.conftest import Chain

SOUND = {"type": "audio", "path": "a.wav"}
WORDS = {"type": "text", "text": "listen to this"}


def row(*messages: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"id": "r", "messages": [{"role": role, "content": parts} for role, parts in messages]}


@pytest.mark.parametrize("role", ["user", "human"])
def test_the_question_is_the_last_sound_of_who_asks(role: str) -> None:
    said = {**SOUND, "path": "b.wav"}
    found = row((role, [SOUND]), ("assistant", [WORDS]), (role, [WORDS, said]), ("assistant", []))
    assert question_part(found) is said


def test_a_row_without_question_or_answer_is_named() -> None:
    with pytest.raises(UsageError, match="row r holds no user message with sound"):
        question_part(row(("user", [WORDS]), ("assistant", [SOUND])))
    assert answer_text(row(("user", [SOUND]), ("assistant", [SOUND, WORDS]))) == WORDS["text"]
    with pytest.raises(UsageError, match="the answer of row r has no text"):
        answer_text(row(("user", [SOUND]), ("assistant", [SOUND])))


def test_a_clip_without_start_and_end_is_the_whole_file(tmp_path: Path) -> None:
    write_json(tmp_path / "domain.json", {})
    samples = np.random.default_rng(0).normal(0, 0.1, 19_200).astype(np.float32)
    write_audio(tmp_path / "a.wav", samples, 16_000)
    corpus = Corpus(tmp_path)
    parts = [SOUND, {**SOUND, "start": 0.6}, {**SOUND, "start": 0.6, "end": 0.84}]
    assert [len(corpus.samples(part)) for part in parts] == [19_200, 9_600, 3_840]
    mels = corpus.mels(parts)
    assert [mel.shape[1] for mel in mels] == [120, 60, 24]
    assert torch.equal(mels[1][:, :20], mels[2][:, :20])
    with pytest.raises(UsageError, match="names no file"):
        corpus.samples({"type": "audio"})


@pytest.mark.parametrize(("phones", "shown"), [("[]", r"\[\]"), ('["zz"]', r"\['zz'\]")])
def test_clips_that_a_tokenizer_cannot_learn_from_are_refused(
    phones: str, shown: str, chain: Chain, tmp_path: Path
) -> None:
    shutil.copytree(chain / "corpus", tmp_path / "corpus")
    manifest = tmp_path / "corpus" / "train.jsonl"
    first, _, rest = manifest.read_text().partition("\n")
    start = first.index('"phones": [') + len('"phones": ')
    end = first.index("]", start) + 1
    manifest.write_text(f"{first[:start]}{phones}{first[end:]}\n{rest}")
    with pytest.raises(UsageError, match=f"has the phones {shown}, domain.json lists"):
        SpeechBatches(corpus=str(tmp_path / "corpus"))
