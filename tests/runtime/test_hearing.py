"""`answers=heard`: what is written and heard at every check; the training knows nothing of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from aqaa.audio.file import read_audio
from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.data.domain import EXTRA_PRONUNCIATIONS
from aqaa.errors import UsageError
from aqaa.evaluation.agreement import COLUMNS, FOLDER, PAGE, read_table
from aqaa.evaluation.recognise import Recogniser
from aqaa.pipeline import Pipeline
from aqaa.runtime import hearing
from aqaa.runtime.log import log_answers
from aqaa.signals import QUESTION_RATE_HZ, Waveform
from tests.conftest import Chain
from tests.runs import WEIGHTS, At, interrupt, rows, train

PROMPTS = 2
# Dropout draws from torch's generator at every step: what draws besides would be seen.
LORA = ("adapter=lora", "adapter.dropout=0.3", "trainer.val_check_interval=3")
SHARES = {"validation/agrees", "validation/text_right", "validation/spoken_right"}


def hears(chain: Chain, *more: str) -> tuple[str, ...]:
    voice = [f"answers.{part}={chain.folder}/vocoder_{part}/model" for part in ("flow", "waveform")]
    return ("answers=heard", f"answers.prompts={PROMPTS}", *voice, *more)


@pytest.fixture(scope="module")
def heard(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pocketsphinx")
    root = tmp_path_factory.mktemp("heard")
    return train(chain.words("sft_2", root, *LORA, *hears(chain)))


def test_the_training_is_the_same(heard: Path, chain: Chain, tmp_path: Path) -> None:
    deaf = train(chain.words("sft_2", tmp_path, *LORA))
    assert (deaf / "model" / WEIGHTS).read_bytes() == (heard / "model" / WEIGHTS).read_bytes()
    for mine, other in zip(rows(heard), rows(deaf), strict=True):
        assert {name: mine[name] for name in other} == other
        assert mine.keys() - other.keys() == SHARES
    assert not (deaf / FOLDER).exists()


def test_every_check_has_a_row_a_prompt_with_its_sound(heard: Path, chain: Chain) -> None:
    table = read_table(heard)
    corpus = Corpus(chain / "corpus")
    prompts = corpus.rows("validation")[:PROMPTS]
    assert list(table[0]) == list(COLUMNS)
    ids = [(int(row["step"]), row["id"]) for row in table]
    assert ids == [(step, prompt["id"]) for step in (3, 6) for prompt in prompts]
    ear = Recogniser(corpus.domain["answers"], EXTRA_PRONUNCIATIONS)
    for row, prompt in zip(table, prompts * 2, strict=True):
        assert row["question_text"] == question_part(prompt)["text"]
        assert row["expected"] == answer_text(prompt)
        sound = read_audio(heard / FOLDER / row["answer"]).samples if row["answer"] else None
        assert row["heard"] == (ear(sound) if sound is not None else "")
        assert row["agrees"] == str(row["text"] == row["heard"] != "")
        assert row["spoken_right"] == str(row["heard"] == row["expected"])


def test_the_shares_are_among_the_figures(heard: Path) -> None:
    table = read_table(heard)
    checks = [row for row in rows(heard) if row["validation/agrees"]]
    assert len(checks) == 2
    for place, check in enumerate(checks):
        mine = table[place * PROMPTS : (place + 1) * PROMPTS]
        for name in ("agrees", "text_right", "spoken_right"):
            share = sum(row[name] == "True" for row in mine) / PROMPTS
            assert float(check[f"validation/{name}"]) == pytest.approx(share)
        assert check["validation/loss"]


def test_the_last_check_hears_the_model_that_is_left(heard: Path, chain: Chain) -> None:
    pipeline = Pipeline.from_folders(
        tokenizer=chain / "tokens" / "tokenizer",
        backbone=heard / "model",
        **{part: chain / f"vocoder_{part}" / "model" for part in ("flow", "waveform")},
    )
    corpus = Corpus(chain / "corpus")
    last = read_table(heard)[-PROMPTS:]
    for row, prompt in zip(last, corpus.rows("validation"), strict=False):
        question = Waveform(corpus.samples(question_part(prompt)).numpy(), QUESTION_RATE_HZ)
        reply = pipeline.answer(question)
        assert row["text"] == reply.text
        seconds = read_audio(heard / FOLDER / row["answer"]).duration_s if row["answer"] else 0
        assert seconds == pytest.approx(reply.sound.duration_s if reply.sound else 0)


def test_the_page_shows_the_last_answers_and_all_checks(heard: Path) -> None:
    page = (heard / FOLDER / PAGE).read_text()
    assert page.count('<article class="card') == PROMPTS and "At step 6" in page
    assert page.count("<tr><th scope=row>") == 2 * PROMPTS
    table = read_table(heard)
    assert all(f'src="{row["answer"]}"' in page for row in table if row["answer"])
    assert all((heard / FOLDER / row["answer"]).is_file() for row in table if row["answer"])
    assert "data:image/png" in page and "http" not in page.replace("http-equiv", "")


def test_a_resumed_run_hears_what_an_unbroken_one_does(
    heard: Path, chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    few = ("answers.every=2", "answers.prompts=1")
    words = chain.words("sft_2", tmp_path, *LORA, *hears(chain, *few))
    after_step["do"] = At(4, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(words)
    # The second check comes after the cut; it is still the second, and not heard.
    assert read_table(train(words)) == read_table(heard)[:1]


def test_it_may_be_turned_on_and_off_in_a_finished_run(
    heard: Path, chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(chain.words("sft_2", heard.parent, *LORA)) == heard
    assert "is finished: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("most_gb", [8.0, 1e-6])
def test_shards_are_heard_from_a_copy_or_not_at_all(
    most_gb: float, heard: Path, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(hearing, "is_sharded", lambda parameter: True)
    few = ("answers.every=2", "answers.prompts=1", f"answers.most_copied_gb={most_gb}")
    run = train(chain.words("sft_2", tmp_path, *LORA, *hears(chain, *few)))
    said = capsys.readouterr().out
    assert (run / "model" / WEIGHTS).read_bytes() == (heard / "model" / WEIGHTS).read_bytes()
    if most_gb == 8.0:
        (row,) = read_table(run)  # of every second check, from the first on
        assert row == read_table(heard)[0]
        left = {path.name for path in run.iterdir()} - {path.name for path in heard.iterdir()}
        assert not left and "not heard" not in said
    else:
        assert not (run / FOLDER).exists() and SHARES.isdisjoint(rows(run)[0])
        assert said.count("answers are not heard: a copy of the backbone takes 0.0 GB") == 1


def test_weights_and_biases_gets_the_table_with_sound_and_picture(heard: Path) -> None:
    class Kept(WandbLogger):
        def __init__(self) -> None:
            self.given: dict[str, Any] = {}

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.given = {"step": step, **metrics}

    logger = Kept()
    table = [dict(row) for row in read_table(heard)[-PROMPTS:]]
    table[0]["answer"] = ""
    log_answers([logger], table, heard, 6)
    assert logger.given["step"] == 6
    made = logger.given["answers"]
    assert made.columns == [*COLUMNS, "sound", "mel"]
    assert [row[: len(COLUMNS)] for row in made.data] == [list(row.values()) for row in table]
    kinds = [tuple(type(cell).__name__ for cell in row[-2:]) for row in made.data]
    spoken = [("Audio", "Image") if row["answer"] else ("NoneType",) * 2 for row in table]
    assert kinds == spoken and ("Audio", "Image") in kinds


def test_errors_of_use_come_before_the_first_step(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain / "corpus", tmp_path / "corpus")
    for more, sentence in (
        (("answers.prompts=0",), "answers.every=1, answers.prompts=0: give 1 or more"),
        ((f"answers.flow={tmp_path}",), "config.json does not exist"),
    ):
        with pytest.raises(Exception) as info:
            train(chain.words("sft_2", tmp_path, *hears(chain), *more))
        cause = info.value.__cause__ or info.value
        assert isinstance(cause, UsageError) and sentence in str(cause)
        assert not (tmp_path / "sft_2" / "metrics.csv").exists()
