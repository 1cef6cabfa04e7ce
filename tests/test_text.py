"""Text ids: words, bytes, specials."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqaa.errors import UsageError
from aqaa.text import FILE, HEADERS, SPECIALS, TASK_WORDS, TextTokenizer

BYTES = TextTokenizer.train_bytes()
WORDS = TextTokenizer.train_words(["red apples and", "green pears", "red"])


def test_specials_come_first_and_headers_are_one_id() -> None:
    assert [WORDS._tokenizer.token_to_id(name) for name in SPECIALS] == [0, 1, 2, 3, 4]
    assert [BYTES._tokenizer.token_to_id(name) for name in SPECIALS] == [0, 1, 2, 3, 4]
    assert [WORDS.encode(header) for header in HEADERS] == [[5], [6], [7]]


def test_words_are_sorted_behind_the_headers() -> None:
    words = sorted({"red", "apples", "and", "green", "pears", *TASK_WORDS})
    assert WORDS.size == 8 + len(words)
    assert [WORDS.encode(word) for word in words] == [[8 + i] for i in range(len(words))]
    again = TextTokenizer.train_words(["pears red green", "and apples"])
    assert again._tokenizer.to_str() == WORDS._tokenizer.to_str()


@given(st.lists(st.sampled_from(["red", "apples", "and", "green", "pears"])))
def test_words_make_the_round_trip(words: list[str]) -> None:
    text = " ".join(words)
    assert len(WORDS.encode(text)) == len(words)
    assert WORDS.decode(WORDS.encode(text)) == text


def test_an_unknown_word_is_one_unknown_id() -> None:
    assert WORDS.encode("red plums and") == [*WORDS.encode("red"), 0, *WORDS.encode("and")]
    assert WORDS.decode(WORDS.encode("red plums and")) == "red and"


@given(st.text())
def test_bytes_make_the_round_trip(text: str) -> None:
    ids = BYTES.encode(text)
    assert len(ids) == len(text.encode())
    assert all(5 <= i < BYTES.size for i in ids)
    assert BYTES.decode(ids) == text


def test_there_are_256_bytes() -> None:
    assert BYTES.size == 5 + 256


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
@pytest.mark.parametrize("special", SPECIALS)
def test_text_cannot_end_a_turn(tokenizer: TextTokenizer, special: str) -> None:
    ids = tokenizer.encode(f"red {special} and")
    assert not {1, 2, 3, 4} & set(ids)


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
def test_specials_are_left_out_of_text(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode([1, 4, *tokenizer.encode("red"), 3, 0, 2]) == "red"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
def test_saved_and_loaded_it_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "model")
    loaded = TextTokenizer.load(tmp_path / "model")
    assert loaded.size == tokenizer.size
    for text in ("red apples", "assistant\n", "<|EOT|>"):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert [p.name for p in (tmp_path / "model").iterdir()] == [FILE]


def test_the_first_ids_of_another_model_are_text(tmp_path: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["one", "two", "three", "four", "five", "six"])}
    BYTES.save(tmp_path)
    record = json.loads((tmp_path / FILE).read_text())
    record["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "one"}
    record["pre_tokenizer"] = {"type": "Whitespace"}
    record["decoder"] = None
    (tmp_path / FILE).write_text(json.dumps(record))
    other = TextTokenizer.load(tmp_path)
    assert other.encode("two four six") == [1, 3, 5]
    assert other.decode([1, 3, 5]) == "two four six"


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no tokenizer.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / FILE).write_text('{"version": "1.0", ')
    with pytest.raises(UsageError, match="tokenizer.json is damaged"):
        TextTokenizer.load(tmp_path)


def test_specials_of_another_model_are_found_and_never_written(tmp_path: Path) -> None:
    BYTES.save(tmp_path)
    record = json.loads((tmp_path / FILE).read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    record["added_tokens"] = [
        {"id": 261, "content": "<|im_end|>", "special": True, **flags},
        {"id": 262, "content": "<think>", "special": False, **flags},
    ]
    (tmp_path / FILE).write_text(json.dumps(record))
    other = TextTokenizer.load(tmp_path)
    assert other.size == 263
    assert other.special("<|eot|>", "<|im_end|>") == other.special(261) == 261
    assert [other.special(name) for name in ("<think>", 262, 7, None)] == [None] * 4
    assert other.special("<s>") == 1
    text = "a<|im_end|>b"
    assert 261 not in other.encode(text)
    assert other.decode([*other.encode(text), 261]) == text
    assert other.encode("<think>") == [262]
    other.save(tmp_path / "again")
    assert TextTokenizer.load(tmp_path / "again").encode(text) == other.encode(text)
