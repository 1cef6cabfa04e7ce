"""The id space: every id has one meaning, and every code one id."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqaa.signals import LINGUISTIC_CODES, SEMANTIC_CODES, CodePair
from aqaa.vocabulary import MARKERS, TOKEN_TYPES, Vocabulary, interleaved

STEP1 = Vocabulary(65536, table_rows=74752)


def test_the_numbers_of_step_1() -> None:
    assert (STEP1.linguistic_start, STEP1.semantic_start) == (65536, 66560)
    assert (STEP1.marker_start, STEP1.used_rows, STEP1.rows) == (70656, 70659, 74752)
    assert (STEP1.audio_start, STEP1.audio_end, STEP1.text_end) == (70656, 70657, 70658)
    assert (STEP1.pad, STEP1.bos, STEP1.eot, STEP1.bot) == (0, 1, 3, 4)


def test_rows_are_rounded_up() -> None:
    used = 50 + 1024 + 4096 + 3
    assert Vocabulary(50).used_rows == used
    assert Vocabulary(50).rows == 5184
    assert Vocabulary(50, row_multiple=1).rows == used
    assert Vocabulary(50, table_rows=used).rows == used


@given(st.integers(5, 70_000), st.data())
def test_codes_make_the_round_trip(text_tokens: int, data: st.DataObject) -> None:
    v = Vocabulary(text_tokens)
    linguistic = data.draw(st.integers(0, LINGUISTIC_CODES - 1))
    semantic = data.draw(st.integers(0, SEMANTIC_CODES - 1))
    assert v.linguistic(linguistic) == text_tokens + linguistic
    assert v.semantic(semantic) == text_tokens + 1024 + semantic
    assert v.code(v.linguistic(linguistic)) == linguistic
    assert v.code(v.semantic(semantic)) == semantic
    assert v.token_type(v.linguistic(linguistic)) == "linguistic"
    assert v.token_type(v.semantic(semantic)) == "semantic"
    assert v.token_type(data.draw(st.integers(0, text_tokens - 1))) == "text"


def test_the_types_cover_the_ids_in_order_without_a_gap() -> None:
    v = Vocabulary(9)
    types = [v.token_type(i) for i in range(v.used_rows)]
    sizes = (9, LINGUISTIC_CODES, SEMANTIC_CODES, len(MARKERS))
    assert types == [t for t, n in zip(TOKEN_TYPES, sizes, strict=True) for _ in range(n)]


@pytest.mark.parametrize("token", [-1, -9, 5132, 10**6])
def test_an_id_without_meaning_is_refused(token: int) -> None:
    v = Vocabulary(9)
    assert v.used_rows == 5132
    with pytest.raises(ValueError, match=str(token)):
        v.token_type(token)
    with pytest.raises(ValueError, match="is not an audio id"):
        v.code(token)


@pytest.mark.parametrize("token", [8, 5129])
def test_text_and_markers_have_no_code(token: int) -> None:
    with pytest.raises(ValueError, match=r"is not an audio id \(9\.\.5128\)"):
        Vocabulary(9).code(token)


@pytest.mark.parametrize(("book", "size"), [("linguistic", 1024), ("semantic", 4096)])
@pytest.mark.parametrize("wrong", ["below", "above"])
def test_a_code_outside_its_book_is_refused(book: str, size: int, wrong: str) -> None:
    code = -1 if wrong == "below" else size
    with pytest.raises(ValueError, match=rf"{book} code {code} lies outside 0\.\.{size - 1}"):
        getattr(Vocabulary(9), book)(code)


def test_an_unfit_table_is_refused() -> None:
    with pytest.raises(ValueError, match="table_rows 5000 < the 5132"):
        Vocabulary(9, table_rows=5000)
    with pytest.raises(ValueError, match="lie outside the 4 text ids"):
        Vocabulary(4)
    with pytest.raises(ValueError, match="lie outside"):
        Vocabulary(9, pad=-1)


def test_own_markers_stand_behind_the_others() -> None:
    base = {"pad": None, "bos": 1, "eot": None, "bot": None}
    v = Vocabulary.behind(300, base, row_multiple=100)
    first = 300 + 5120 + len(MARKERS)
    assert (v.pad, v.bos, v.eot, v.bot) == (first, 1, first + 1, first + 2)
    assert (v.text_end, v.used_rows, v.rows) == (first - 1, first + 3, 5500)
    assert [v.token_type(i) for i in (299, first - 1, first + 2)] == ["text", "marker", "marker"]
    with pytest.raises(ValueError, match="lies outside"):
        v.token_type(first + 3)
    none = Vocabulary.behind(300, {"pad": 7, "bos": 7, "eot": 8, "bot": 9})
    assert none.used_rows == first
    with pytest.raises(ValueError, match="lie outside"):
        Vocabulary(300, eot=first + 4)
    with pytest.raises(ValueError, match="lie outside"):
        Vocabulary(300, eot=first - 1)


def test_both_books_make_one_stream() -> None:
    codes = CodePair([1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15, 16])
    assert interleaved(codes) == [1, 2, 1034, 1035, 1036, 3, 4, 1037, 1038, 1039]
    assert interleaved(CodePair([1], [2, 3, 4])) == []
