"""Pairs by words and by sound, from several models, with deaf replies, the same after a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqaa.backbone.decoding import Decoder
from aqaa.backbone.loading import Ids
from aqaa.data.corpus import Corpus, answer_text
from aqaa.data.manifest import read_manifest
from aqaa.data.preferences import PreferenceBatches, turn
from aqaa.data.token_store import TokenStore
from aqaa.data.validate import validate
from aqaa.errors import UsageError
from aqaa.evaluation import pairs as module
from aqaa.evaluation.pairs import DEAF, pairs
from aqaa.storage import read_json, tree_hash
from tests.conftest import Chain


def make(chain: Chain, out: Path, **options: Any) -> list[dict[str, Any]]:
    words = {"prompts": 4, "samples": 2, **options}
    pairs(model=f"{chain / 'sft_1'}/model", corpus=str(chain / "corpus"),
          tokens=str(chain / "tokens"), out=str(out), **words)  # fmt: skip
    return read_manifest(out / "pairs.jsonl")


def test_a_killed_factory_makes_the_same_pairs(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(chain, tmp_path / "whole")
    asked: list[str] = []
    real = module._PairMaker.outcome

    def outcome(self: Any, row: dict[str, Any]) -> dict[str, Any]:
        asked.append(row["id"])
        found = real(self, row)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(module._PairMaker, "outcome", outcome)
    with pytest.raises(KeyboardInterrupt):
        make(chain, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    make(chain, tmp_path / "cut")
    assert len(asked) == 5 and asked[2] == asked[3]  # two are kept, the third is asked again
    names = ("pairs.jsonl", "meta.json")
    assert all((tmp_path / "cut" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes()
               for n in names)  # fmt: skip
    assert not list(tmp_path.glob(".*"))


def test_deaf_replies_to_clear_questions_are_rejected(chain: Chain, tmp_path: Path) -> None:
    plain = make(chain, tmp_path / "plain")
    corpus = Corpus(chain / "corpus")
    expected = {row["id"]: answer_text(row) for row in corpus.rows("train")}
    words = sorted(corpus.domain["answers"])[0]  # which the toy tokenizer knows
    reply = f"{words} {words}"
    rows = make(chain, tmp_path / "deaf", deaf_share=1.0, deaf_replies=[reply])
    deaf = [row for row in rows if row["reason"] == DEAF]
    assert len(deaf) == 4 and [row for row in rows if row["reason"] != DEAF] == plain
    store = TokenStore(chain / "tokens")
    for row in deaf:
        name = row["id"].removeprefix("deaf-")
        chosen, rejected = turn(row["chosen"][0]), turn(row["rejected"][0])
        assert (chosen.text, rejected.text) == (expected[name], reply)
        assert chosen.speech == rejected.speech  # only words differ
        assert turn(row["prompt"][0]).speech == [store[f"train/{name}"]]  # without noise
    assert read_json(tmp_path / "deaf/meta.json")["counts"]["deaf"] == 4
    assert not validate(manifest=tmp_path / "deaf/pairs.jsonl")
    ids = Ids.load(chain / "sft_1/model")
    source = PreferenceBatches(pairs=str(tmp_path / "deaf"), batch=2)
    source.bind(ids)
    assert source.batch(0).counted
    half = make(chain, tmp_path / "half", prompts=12, samples=1, deaf_share=0.5,
                deaf_replies=[reply])  # fmt: skip
    assert 2 <= sum(row["reason"] == DEAF for row in half) <= 10
    with pytest.raises(UsageError, match="'zyx' as .*: give deaf_replies of words it knows"):
        make(chain, tmp_path / "none", deaf_share=1.0, deaf_replies=["zyx"])
    with pytest.raises(UsageError, match="with deaf_replies where it is not 0"):
        make(chain, tmp_path / "none", deaf_share=0.5)


def test_what_is_heard_orders_answers_of_several_models(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def ear(samples: np.ndarray) -> str:
        heard.append(str(len(samples)))
        return ""

    monkeypatch.setattr(module, "Recogniser", lambda *_: ear)
    voice = {part: f"{chain / f'vocoder_{part}'}/model" for part in ("flow", "waveform")}
    rows = make(chain, tmp_path / "pairs", prompts=2, samples=1, voice=voice,
                others=[f"{chain / 'sft_2'}/model"], margin=0.0,
                score={"text": 1.0, "heard": 0.5, "silence": 0.1})  # fmt: skip
    meta = read_json(tmp_path / "pairs/meta.json")
    assert meta["parents"]["other_0"] == tree_hash(f"{chain / 'sft_2'}/model")
    assert meta["counts"]["answers"] == 4 and len(heard) >= 2
    models = {"corpus", *(f"{chain / part}/model" for part in ("sft_1", "sft_2"))}
    for row in rows:
        chosen, rejected = row["meta"]["chosen"], row["meta"]["rejected"]
        assert {chosen["origin"], rejected["origin"]} <= models
        for side in (chosen, rejected):
            assert set(side) == {"origin", "text", "heard", "agreement", "length", "silence"}
        apart = [s["text"] + 0.5 * s["heard"] + 0.1 * s["silence"] for s in (chosen, rejected)]
        assert row["margin"] == pytest.approx(apart[0] - apart[1])
    with pytest.raises(UsageError, match="give voice.flow and voice.waveform"):
        make(chain, tmp_path / "none", score={"heard": 1.0})


def test_a_judge_orders_answers_that_are_wrong_alike(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = Ids.load(chain / "init")
    known = sorted(Corpus(chain / "corpus").domain["answers"])
    texts = [f"{text} {text}" for text in known[:3]]  # of known words, and never the right answer
    script = list(texts)

    def answer(self: Decoder, prompt: list[int], **options: Any) -> list[int]:
        v = ids.vocabulary
        if begun := options.get("begun"):
            return [*begun, v.audio_start, v.audio_end, v.eot]
        return [*ids.text.encode(script.pop(0)), v.text_end]

    monkeypatch.setattr(Decoder, "answer", answer)
    marks = dict(zip(texts, (0.5, 0.1, 0.3), strict=True))
    (row,) = make(chain, tmp_path / "pairs", prompts=1, samples=3, score={"judge": 1.0},
                  judge=lambda expected, text: marks.get(text, 1.0), margin=0.8)  # fmt: skip
    assert turn(row["rejected"][0]).text == texts[1] and row["margin"] == pytest.approx(0.9)
    assert row["meta"]["rejected"] == {
        "origin": f"{chain / 'sft_1'}/model", "text": 0.0, "judge": 0.1,
    }  # fmt: skip
    assert row["meta"]["chosen"] == {"origin": "corpus", "text": 1.0, "judge": 1.0}
    script[:] = [texts[0], texts[2], texts[2]]
    with pytest.raises(UsageError, match="worse by margin=0.8: raise code_noise"):
        make(chain, tmp_path / "none", prompts=1, samples=3, score={"judge": 1.0},
             judge=lambda expected, text: marks.get(text, 1.0), margin=0.8)  # fmt: skip
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".*"))
