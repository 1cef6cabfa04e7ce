"""What is decoded is always an answer of the layout, picked as asked."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aqaa.backbone.decoding import Decoder, Sampling, _nucleus
from aqaa.backbone.loading import Backbone
from aqaa.grammar import AnswerGrammar, Mode, Slot
from aqaa.signals import CodePair, Turn
from aqaa.stream import StreamLayout, audio_ids
from tests.golden.make import backbone

LAYOUTS = [
    StreamLayout(),
    StreamLayout(3, 5, "linguistic", "removed"),
    StreamLayout(None, None),
    StreamLayout(6, 50, labels="pre_interleaved"),
]
QUESTION = [Turn("human", "w01 w02", [CodePair([1, 2, 3, 4], [5, 6, 7, 8, 9, 10])])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone(tmp_path_factory.mktemp("decoding") / "model")


def with_layout(model: Backbone, layout: StreamLayout) -> Backbone:
    ids = model.ids
    return Backbone(model.model, type(ids)(ids.text, ids.vocabulary, layout, ids.tokenizer_hash))


def prompt_of(model: Backbone) -> list[int]:
    return model.ids.layout.prompt(QUESTION, model.ids.text, model.ids.vocabulary)


def check(model: Backbone, ids: list[int], mode: Mode, limit: int) -> None:
    """The grammar accepts every id, and the parser reads the rest."""
    grammar = AnswerGrammar(model.ids.layout, model.ids.vocabulary, mode)
    for token in ids:
        grammar.advance(token)
    assert grammar.finished or len(ids) == limit
    answer = model.ids.layout.parse(ids, model.ids.text, model.ids.vocabulary)
    assert answer.complete == grammar.finished
    if mode == "text":
        assert answer.speech == []
    if mode == "speech":
        assert answer.text == ""


@pytest.mark.parametrize("layout", LAYOUTS, ids=["paper", "removed", "text_cot", "pieces"])
@pytest.mark.parametrize("mode", ["text", "speech", "both"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_answer_of_a_random_model_is_one(
    layout: StreamLayout, mode: Mode, temperature: float, model: Backbone
) -> None:
    model = with_layout(model, layout)
    sampling = Sampling(temperature=temperature, max_tokens=60)
    generator = torch.Generator().manual_seed(1)
    ids = Decoder(model).answer(
        prompt_of(model), mode=mode, sampling=sampling, generator=generator
    )
    check(model, ids, mode, 60)


def favour(model: Backbone, tokens: list[int]) -> Backbone:
    """The same model with tokens that any hidden state likes."""

    class Liking:
        ids = model.ids
        slot_rows = model.slot_rows

        @property
        def table(self) -> Tensor:
            rows = torch.zeros_like(model.table)
            rows[tokens] = 1
            return rows

        def hidden(self, *args: object, **kwargs: object) -> object:
            out = model.hidden(*args, **kwargs)  # type: ignore[arg-type]
            out.last_hidden_state = torch.ones_like(out.last_hidden_state)
            return out

    return Liking()  # type: ignore[return-value]


@pytest.mark.parametrize("mode", ["text", "speech", "both"])
def test_a_model_that_wants_to_end_ends(mode: Mode, model: Backbone) -> None:
    v = model.ids.vocabulary
    eager = favour(model, [v.eot, v.text_end, v.audio_end])
    ids = Decoder(eager).answer(prompt_of(model), mode=mode)
    check(model, ids, mode, 0)
    expected = {
        "text": [v.eot],
        "speech": [v.audio_start, v.audio_end, v.eot],
        "both": [v.text_end, v.audio_start, v.audio_end, v.eot],
    }
    assert ids == expected[mode]


def test_specials_are_never_written(model: Backbone) -> None:
    v = model.ids.vocabulary
    wrong = favour(model, [v.pad, v.bos, v.bot])
    ids = Decoder(wrong).answer(prompt_of(model), mode="text", sampling=Sampling(max_tokens=5))
    assert not {v.pad, v.bos, v.bot} & set(ids)


def test_greedy_takes_the_best_allowed_id_of_the_slot(model: Backbone) -> None:
    prompt = prompt_of(model)
    ids = Decoder(model).answer(prompt, sampling=Sampling(max_tokens=30))
    grammar = AnswerGrammar(model.ids.layout, model.ids.vocabulary, "both")
    with torch.no_grad():
        logits = model.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :]
    for token, row in zip(ids, logits, strict=False):
        if grammar.slot is not Slot.FORCED:
            allowed = torch.full_like(row, float("-inf"))
            options = model.ids.layout.slot_ids(grammar.slot, model.ids.vocabulary)
            allowed[[t for t in options if grammar.allows(t)]] = 0
            best = (row + allowed).max()
            assert float(row[token]) == pytest.approx(float(best), abs=1e-5)
        grammar.advance(token)


def test_sampling_repeats_with_its_seed(model: Backbone) -> None:
    decoder, prompt = Decoder(model), prompt_of(model)

    def answer(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        sampling = Sampling(temperature=1.0, top_p=0.9, max_tokens=20)
        return decoder.answer(prompt, sampling=sampling, generator=generator)

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(4)}) > 1


def test_text_may_have_a_temperature_of_its_own(model: Backbone) -> None:
    decoder, prompt = Decoder(model), prompt_of(model)
    cold = Sampling(temperature=1.0, text_temperature=0.0, max_tokens=20)
    greedy = decoder.answer(prompt, sampling=Sampling(max_tokens=20))
    text = model.ids.vocabulary.linguistic_start
    warm = decoder.answer(prompt, sampling=cold, generator=torch.Generator().manual_seed(0))
    first = next(i for i, t in enumerate(greedy) if t >= text)
    assert warm[:first] == greedy[:first]
    assert warm != greedy


def test_what_is_begun_is_kept_and_continued(model: Backbone) -> None:
    decoder, prompt = Decoder(model), prompt_of(model)
    whole = decoder.answer(prompt, sampling=Sampling(max_tokens=40))
    for cut in (1, 10, 11, 17):
        found = decoder.answer(prompt, begun=whole[:cut], sampling=Sampling(max_tokens=40))
        assert found == whole, cut


def test_what_is_begun_may_be_all_there_is(model: Backbone) -> None:
    v = model.ids.vocabulary
    begun = [8, v.text_end, v.audio_start, *audio_ids(QUESTION[0].speech[0], v), v.audio_end, v.eot]
    assert Decoder(model).answer(prompt_of(model), begun=begun) == begun


def test_what_is_begun_must_be_of_the_layout(model: Backbone) -> None:
    with pytest.raises(ValueError, match="is not allowed in slot TEXT"):
        Decoder(model).answer(prompt_of(model), begun=[model.ids.vocabulary.audio_end])


def test_it_stops_where_it_is_told(model: Backbone) -> None:
    v = model.ids.vocabulary
    eager = favour(model, [v.eot, v.text_end, v.audio_end])
    ids = Decoder(eager).answer(prompt_of(model), stop_at=v.audio_start)
    assert ids == [v.text_end, v.audio_start]


def test_the_nucleus_by_hand() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    assert _nucleus(probabilities, 1.0).tolist() == probabilities.tolist()
    assert _nucleus(probabilities, 0.6).tolist() == pytest.approx([0, 0.5, 0, 0.25])
    assert _nucleus(probabilities, 0.01).tolist() == pytest.approx([0, 0.5, 0, 0])
    assert _nucleus(probabilities, 0.8).tolist() == pytest.approx([0, 0.5, 0.15, 0.25])


def test_a_folder_is_enough(tmp_path: Path) -> None:
    loaded = backbone(tmp_path / "model")
    assert Decoder(loaded).answer(prompt_of(loaded), sampling=Sampling(max_tokens=3))
