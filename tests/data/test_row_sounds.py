"""Which sounds a row holds, under which keys, and how one is heard at either rate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aqaa.audio.file import PEAK, prepare, read_audio
from aqaa.data.corpus import question_part
from aqaa.data.row_sounds import heard, keyed, sounds
from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ

PARTS: list[dict[str, Any]] = [{"type": "audio", "path": f"{i}.wav"} for i in range(5)]
WORDS = {"type": "text", "text": "x"}
PAIR = {
    "id": "p",
    "prompt": [{"role": "user", "content": [PARTS[0]]}],
    "chosen": [{"role": "assistant", "content": [WORDS, PARTS[1]]}],
    "rejected": [{"role": "assistant", "content": [PARTS[2]]}],
}
CHAT = {
    "id": "c",
    "meta": {"voice": "v"},
    "messages": [
        {"role": "user", "content": [WORDS, PARTS[0]]},
        {"role": "assistant", "speaker": "m", "style": "calm", "content": [WORDS, PARTS[1]]},
        {"role": "human", "content": [PARTS[2], {**PARTS[3], "text": "y"}]},
        {"role": "assistant", "content": [{**PARTS[4], "ref": "elsewhere"}]},
    ],
}


def test_sounds_of_a_row_come_in_order_with_what_it_says_of_them() -> None:
    assert [(s.part, s.field, s.human, s.text) for s in sounds(PAIR)] == [
        (PARTS[0], "prompt", True, None),
        (PARTS[1], "chosen", False, "x"),
        (PARTS[2], "rejected", False, None),
    ]
    flat = {"audio": PARTS[3], "prompt": PARTS[4], "text": "x", "speaker": "s", "style": "low"}
    assert [(s.part, s.text, s.speaker, s.style) for s in sounds(flat)] == [
        (PARTS[3], "x", "s", "low"),
        (PARTS[4], None, "s", "low"),
    ]
    said = [(s.turn, s.human, s.text, s.speaker, s.style, s.own) for s in sounds(CHAT)]
    assert said == [
        (0, True, None, "v", None, True),
        (1, False, "x", "m", "calm", True),
        (2, True, None, "v", None, True),
        (2, True, "y", "v", None, True),
        (3, False, None, None, None, False),  # what it is said to be is a row of its own
    ]
    assert question_part(CHAT) is PARTS[2]
    for broken in ({"messages": 3}, {"messages": [{"content": "x"}, 4]}, {"audio": 5, "meta": 1}):
        assert sounds(broken) == []


def test_keys_number_a_rows_own_sounds() -> None:
    assert [key for key, _ in keyed("m", CHAT)] == ["m/c/0", "m/c/1", "m/c/2", "m/c/3"]
    one = {"id": "o", "messages": [*CHAT["messages"][:1], *CHAT["messages"][3:]]}  # type: ignore[index]
    assert [(key, s.part) for key, s in keyed("m", one)] == [("m/o", PARTS[0])]
    assert keyed("m", {"text": "no sound, no id"}) == []
    with pytest.raises(UsageError, match="m.jsonl has a row without an id"):
        keyed("m", {"audio": PARTS[0]})


def test_a_clip_is_whole_in_a_corpus_and_loses_its_silence_elsewhere(tmp_path: Path) -> None:
    loud = 0.2 * np.sin(np.arange(16_000) / 9)
    silence = np.zeros(8_000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([silence, loud, silence]), 16_000)
    part = {"path": "a.wav"}
    plain, slow = heard(part, tmp_path), heard(part, tmp_path, rate_hz=VOCODER_RATE_HZ)
    assert np.array_equal(plain, prepare(read_audio(tmp_path / "a.wav")).samples)
    assert -0.01 < len(plain) / 16_000 - len(slow) / VOCODER_RATE_HZ < 0.12
    (tmp_path / "domain.json").write_text("{}")
    assert np.array_equal(heard(part, tmp_path), read_audio(tmp_path / "a.wav").samples)
    slow = heard(part, tmp_path, rate_hz=VOCODER_RATE_HZ)
    assert len(slow) == 2 * VOCODER_RATE_HZ
    for samples, peak in ((plain, PEAK), (slow, PEAK), (heard(part, tmp_path, peak=0.9), 0.9)):
        assert np.abs(samples).max() == pytest.approx(peak, abs=1e-6)
