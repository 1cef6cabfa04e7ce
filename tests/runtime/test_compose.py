"""Composing: values win in the right order, and every error of use is one sentence."""

from pathlib import Path

import pytest

from aqaa.errors import UsageError
from aqaa.runtime.compose import compose


def test_the_command_line_beats_the_preset_which_beats_the_root(conf: Path) -> None:
    assert compose("sft", conf=conf).optim.lr == 1e-3
    cfg = compose("sft", ["preset=paper/sft_1"], conf=conf)
    assert (cfg.optim.lr, cfg.adapter.rank) == (2e-5, 64)
    cfg = compose("sft", ["optim.lr=0.1", "preset=paper/sft_1", "trainer=zero3_nodes"], conf=conf)
    assert (cfg.optim.lr, cfg.trainer.nodes, cfg.run.out) == (0.1, 2, "runs/sft")


def test_a_choice_of_group_beats_the_presets(conf: Path) -> None:
    with pytest.raises(UsageError, match="it sets adapter.rank, which sft lacks"):
        compose("sft", ["preset=paper/sft_1", "adapter=none", "optim.lr=1"], conf=conf)


@pytest.mark.parametrize(
    ("verb", "override", "sentence"),
    [
        ("sft", "lr=1", "sft has no key lr: the nearest is optim.lr"),
        ("sft", "optim.lrr=1", "sft has no key optim.lrr: the nearest is optim.lr"),
        ("sft", "trianer=cpu", "sft has no key trianer: the nearest is trainer"),
        (
            "sft",
            "trainer=zero3_node",
            "trainer has no option zero3_node: the nearest is zero3_nodes; for sft there are cpu,",
        ),
        (
            "tokenizer",
            "adapter=lora",
            "tokenizer has no group adapter: it has run, trainer, preset",
        ),
        (
            "tokenizer",
            "preset=paper/sft_1",
            "preset paper/sft_1 is not for tokenizer: it is written for sft; "
            "for tokenizer there are codes",
        ),
        ("sft", "presets=paper/sft_1", "sft has no key presets: the nearest is preset"),
        ("sft", "preset=sft_1", "preset has no option sft_1: the nearest is paper/sft_1"),
        (
            "sft",
            "preset=paper/sft_3",
            "preset has no option paper/sft_3: the nearest is paper/sft_1",
        ),
        (
            "sft",
            "data=tokens",
            "data tokens is not for sft: it refers to parents.tokens, which sft lacks; "
            "for sft there are speech",
        ),
        ("listen", "path=there", "listen needs source=…"),
        ("sft", "run.seed=1,2", "'run.seed=1,2' is a list of runs"),
        ("sft", "run.name=a)b", "cannot read 'run.name=a)b'"),
        ("answer", "a=b", "answer has no configuration"),
    ],
)
def test_errors_of_use_are_one_sentence(
    conf: Path, verb: str, override: str, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        compose(verb, [override], conf=conf)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_values_may_be_left_open_to_look(conf: Path) -> None:
    assert list(compose("listen", allow_missing=True, conf=conf))[1] == "source"
    assert compose("listen", ["source=x"], conf=conf).source == "x"


def test_an_unknown_key_of_a_chosen_option_is_found_among_that_options_keys(conf: Path) -> None:
    with pytest.raises(UsageError, match="the nearest is adapter.rank"):
        compose("sft", ["preset=paper/sft_1", "adapter.rnk=3"], conf=conf)
