"""`aqaa listen data=…`: the targets of every stage as its data gives them, run or not."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqaa.audio.file import read_audio
from aqaa.backbone.loading import Ids
from aqaa.cli import main
from aqaa.data.corpus import Corpus
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.preferences import PreferenceBatch, PreferenceBatches
from aqaa.data.tasks import TASKS, Materials
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.runtime.listening import listen, loss_weights
from aqaa.signals import GROUP_S
from aqaa.storage import verify_manifest
from aqaa.stream import Slot
from aqaa.vocoder.voice import load_voice
from tests.conftest import Chain

COUNT = 5
PACKED = ("data.row_tokens=600",)
STAGES = {
    "pretrain": ("pretrain", ("data.code_noise=0",)),
    "pretrain packed": ("pretrain", ("data.code_noise=0", *PACKED)),
    "sft": ("sft_1", ("data.code_noise=0",)),
    "sft packed": ("sft_1", ("data.code_noise=0", *PACKED)),
    "dpo": ("dpo", ()),
}


def voice(chain: Chain) -> dict[str, str]:
    return {part: f"{chain.folder}/vocoder_{part}/model" for part in ("flow", "waveform")}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")  # the command line sets these for its process


def of_a_stage(chain: Chain, name: str, out: Path, *more: str) -> list[str]:
    """The command line that listens to a stage that has not run."""
    stage, settings = STAGES[name]
    verb, *words = chain.words(stage, out.parent, *settings)
    own = [f"{part}={path}" for part, path in voice(chain).items()]
    return ["listen", f"data={verb}", *words, *own, f"out={out}", f"count={COUNT}", *more]


def dialogues(chain: Chain, said: str) -> list[tuple[Any, str]]:
    """Dialogue and name of the documents that a text names, from the corpus itself."""
    corpus, store = Corpus(chain / "corpus"), TokenStore(chain / "tokens")
    rows = {m.row["id"]: m for m in Materials(corpus, store, "train")}
    named = re.findall(r"^batch \d+, (\w+) of ([\w-]+):", said, re.MULTILINE)
    return [(TASKS[task](rows[row]), f"{task} of {row}") for task, row in named]


@pytest.mark.parametrize("name", [n for n in STAGES if n != "dpo"])
def test_a_stage_that_has_not_run_is_heard_as_its_corpus_says(
    name: str, chain: Chain, tmp_path: Path
) -> None:
    out = tmp_path / "heard"
    assert main(of_a_stage(chain, name, out)) == 0
    assert verify_manifest(out) and not (tmp_path / STAGES[name][0]).exists()
    said, page = (out / "targets.txt").read_text(), (out / "targets.html").read_text()
    assert f"{COUNT} documents, nothing is wrong" in said and "nothing is wrong" in page
    found = dialogues(chain, said)
    assert len(found) == COUNT
    ids, speaks = Ids.load(chain / "init"), load_voice(**voice(chain))
    blocks = said.split("\n\n")[1:]
    for number, ((dialogue, about), block) in enumerate(zip(found, blocks, strict=False)):
        stream = ids.layout.encode(dialogue, ids.text, ids.vocabulary)
        mask = [slot not in (Slot.NONE, Slot.FORCED) for slot in stream.slots[1:]]
        letters = block.splitlines()[1].strip()
        assert [letter.isupper() for letter in letters] == mask, about
        kinds = {"text": "t", "linguistic": "l", "semantic": "s", "marker": "m"}
        wanted = "".join(kinds[ids.vocabulary.token_type(i)] for i in stream.ids[1:])
        assert letters.lower() == wanted, about
        for place, turn in enumerate(dialogue):
            assert f'  {turn.role}: learnt ' in block and turn.text in block
            for piece, pair in enumerate(turn.speech):
                sound = out / f"audio/{number:02d}-{turn.role}-{place}-{piece}.wav"
                heard = read_audio(sound)
                assert heard.duration_s == pytest.approx(float(pair.groups * GROUP_S))
                assert np.abs(heard.samples - speaks.speak(pair).samples).max() < 2 / 2**15
        assert f"<h3>batch 0, {about}</h3>" in page or "batch 1" in page


def test_the_flow_is_solved_as_asked(chain: Chain, tmp_path: Path) -> None:
    sounds = []
    for name, more in (("as it is", ()), ("once", ("steps=1",))):
        assert main([*of_a_stage(chain, "sft", tmp_path / name, *more), "count=1"]) == 0
        sounds.append(next((tmp_path / name / "audio").glob("*-assistant-*.wav")).read_bytes())
    assert sounds[0] != sounds[1]


def test_pairs_show_both_sides_and_the_mask_of_the_paper(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "heard"
    assert main(of_a_stage(chain, "dpo", out)) == 0
    said = (out / "targets.txt").read_text()
    # A batch of two pairs: what is chosen comes first. The fifth document is of the next batch.
    assert re.findall(r"^batch 0, (\w+) of pair-", said, re.MULTILINE)[:4] == [
        *("chosen", "chosen", "rejected", "rejected")
    ]
    answers = re.findall(r"^  assistant: learnt (.*?);", said, re.MULTILINE)
    for answer in answers:
        assert re.search(r"text (\d+) of \1\b", answer), answer
        assert all(re.search(rf"{kind} 0 of \d+", answer) for kind in ("linguistic", "marker"))
    assert "nothing is wrong" in said


def test_all_ids_of_pairs_count_without_a_mask(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "heard"
    assert main(of_a_stage(chain, "dpo", out, "data.mask=none")) == 0
    answers = re.findall(r"assistant: learnt (.*?);", (out / "targets.txt").read_text())
    assert answers and all(re.search(r"linguistic (\d+) of \1\b", answer) for answer in answers)


def test_a_run_is_heard_with_its_own_settings(chain: Chain, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    noise = ("data.code_noise=0.2",)
    assert main([*of_a_stage(chain, "sft", before, *noise), "batch=2"]) == 0
    own = [f"{part}={path}" for part, path in voice(chain).items()]
    words = ["listen", f"{chain.folder}/sft_1", *own]
    assert main([*words, f"out={after}", f"count={COUNT}", "batch=2"]) == 0
    texts = [(folder / "targets.txt").read_text().split("\n", 1)[1] for folder in (before, after)]
    assert texts[0] == texts[1]
    names = [sorted(p.name for p in (f / "audio").iterdir()) for f in (before, after)]
    assert names[0] == names[1]


def spoil(monkeypatch: pytest.MonkeyPatch, source: type, how: Any) -> None:
    real = source.batch  # type: ignore[attr-defined]

    def batch(self: Any, step: int) -> Any:
        made = real(self, step)
        how(made)
        return made

    monkeypatch.setattr(source, "batch", batch)


def shift(batch: Any) -> None:
    pairs = isinstance(batch, PreferenceBatch)
    batch.targets[:] = batch.input_ids[tuple(batch.at)] if pairs else batch.input_ids


def mask(batch: Any) -> None:
    if isinstance(batch, PreferenceBatch):  # says where what is learnt lies, and nothing else
        batch.at[1] //= 2
    else:
        batch.slots[batch.slots == int(Slot.NONE)] = int(Slot.TEXT)


def span(batch: Any) -> None:
    for tensor in (batch.input_ids, batch.targets):
        tensor[tensor > 1500] += 100_000


SPOILT = {
    "shift": (shift, "what is learnt is not the id that is read next"),
    "mask": (mask, "ids of the turn of human are learnt"),
    "span": (span, "mean nothing"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("name", ["sft packed", "dpo"])
def test_what_is_wrong_with_the_data_is_seen_at_its_place(
    case: str, name: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    words = of_a_stage(chain, name, good, "flow=null")
    assert main(words) == 0
    how, sentence = SPOILT[case]
    spoil(monkeypatch, PreferenceBatches if name == "dpo" else DialogueBatches, how)
    assert main([*words, f"out={bad}"]) == 0
    for file in ("targets.txt", "targets.html"):
        before, after = ((folder / file).read_text() for folder in (good, bad))
        assert "nothing is wrong" in before and sentence not in before
        assert "documents are wrong" in after and sentence in after
    cells = [re.findall(r'<i class="([^"]*)" title="(\d+): ', (f / "targets.html").read_text())
             for f in (good, bad)]  # fmt: skip
    assert not any("bad" in classes for classes, _ in cells[0])
    assert any("bad" in classes for classes, _ in cells[1])
    if case == "mask" and name != "dpo":
        letters = [(f / "targets.txt").read_text().splitlines()[4] for f in (good, bad)]
        # A mask over padding makes it part of the document.
        assert letters[1].lower().startswith(letters[0].lower())
        assert sum(map(str.isupper, letters[1])) > sum(map(str.isupper, letters[0]))


def test_weights_are_the_stage_s_own() -> None:
    weights = {"text": 3.0, "linguistic": 1.0, "semantic": 0.7, "after": 1.0}
    found = loss_weights({"stage": {"slot_weights": weights, "normalise": "table"}})
    assert found[Slot.TEXT] == 3.0 and found[Slot.FORCED] == 1.0
    assert set(loss_weights({"stage": {}}).values()) == {1.0}
    assert Slot.FORCED not in loss_weights({"stage": {"normalise": "slot"}})


def test_errors_of_use_are_one_sentence_and_leave_nothing(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run, tokens = str(chain / "sft_1"), str(chain / "tokens")
    for settings, sentence in (
        ({"source": run, "overrides": ["optim.lr=1"]}, "optim.lr=1: the run"),
        ({"source": tokens, "overrides": ["flwo=x"]}, "flwo=x is no setting of listening"),
        ({"source": tokens, "flow": None}, "a token store is heard through a vocoder"),
        ({"source": run, "count": 0}, "count=0 documents from batch=0"),
        ({"source": run, "keys": ["a"]}, "keys names clips of a token store"),
        ({"source": str(tmp_path)}, "is not a token store"),
        ({"source": str(chain / "vocoder_flow")}, "knows pretrain, sft and dpo"),
        ({"source": "sft", "overrides": ["preset=walkthrough/sft_3"]}, "no option"),
    ):
        with pytest.raises(UsageError) as info:
            listen(**{**voice(chain), "out": str(out), **settings})  # type: ignore[arg-type]
        assert sentence in str(info.value) and "\n" not in str(info.value)
        assert not out.exists()
