"""Text ids out of a tokenizer.model: pieces by score, bytes for the rest, headers as told."""

from pathlib import Path

import pytest

from aqaa.errors import UsageError
from aqaa.release.sentencepiece import read_text_ids
from tests.release.pieces import pieces, write_pieces


@pytest.fixture(params=["bpe", "unigram"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_pieces(tmp_path / "tokenizer.model", bpe=request.param == "bpe", audio=3)
    return tmp_path / "tokenizer.model"


def test_pieces_become_ids_without_a_blank_before_them(model: Path) -> None:
    text = read_text_ids(model)
    ids = {name: i for i, (name, _) in enumerate(pieces())}
    assert text.size == len(pieces()), "audio entries are no text"
    assert text.encode("abc ab") == [ids["abc"], ids["\u2581ab"]]
    assert text.encode("ab c") == [ids["ab"], ids["\u2581"], ids["c"]]
    assert text.encode("é") == [ids["<0xC3>"], ids["<0xA9>"]]
    for said in ("abc ab", "a  b", "é 你", "human assistant", "<|EOT|>"):
        if "<" not in said:
            assert text.decode(text.encode(said)) == said
    assert not {3, 4} & set(text.encode("<|EOT|><|BOT|>")), "text never ends a turn"
    assert (text.special("<s>"), text.special("<|EOT|>"), text.special("<|BOT|>")) == (1, 3, 4)


def test_a_role_has_the_blank_of_the_template(model: Path) -> None:
    text = read_text_ids(model)
    ids = {name: i for i, (name, _) in enumerate(pieces())}
    assert text.encode("assistant\n") == [ids["\u2581assistant"], ids["\n"]]
    assert text.encode("human\n") == [ids["\u2581human"], ids["\n"]]
    assert text.encode("assistant\na")[0] == ids["assistant"]


def test_it_is_saved_and_read_as_any_other(model: Path, tmp_path: Path) -> None:
    from aqaa.text import TextTokenizer

    text = read_text_ids(model)
    text.save(tmp_path / "saved")
    again = TextTokenizer.load(tmp_path / "saved")
    assert again.encode("abc é human") == text.encode("abc é human")


def test_what_is_no_such_model_is_refused(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    for content, sentence in (
        (data[:-3], "cannot be read as a SentencePiece model"),
        (b"", "is no SentencePiece model of pieces"),
        (b"\xff" * 40, "cannot be read as a SentencePiece model"),
    ):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            read_text_ids(tmp_path / "bad.model")
    with pytest.raises(UsageError, match="cannot be read"):
        read_text_ids(tmp_path / "nowhere.model")
