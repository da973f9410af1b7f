import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.filters import NGRAM, SCRIPTS, Filters, is_written_in, repetition

WRITTEN = {
    "zh": "答案是四，因为二加二等于四。",
    "ja": "答えは四です。二たす二は四だからです。",
    "ko": "정답은 넷입니다.",
    "en": "The answer is four.",
    "ru": "Ответ: четыре.",
    "el": "Η απάντηση είναι τέσσερα.",
    "ar": "الجواب أربعة.",
    "he": "התשובה היא ארבע.",
    "hi": "उत्तर चार है।",
    "th": "คำตอบคือสี่",
}


def test_every_language_is_told_from_every_other():
    assert WRITTEN.keys() == SCRIPTS.keys()
    for language in SCRIPTS:
        assert [other for other, text in WRITTEN.items() if is_written_in(text, language)] == [language]


@pytest.mark.parametrize("text", ["", "8588", "2 + 2 = 4", "🙂 !?"])
def test_a_text_without_letters_is_in_every_language(text):
    assert all(is_written_in(text, language) for language in SCRIPTS)


def test_some_words_of_another_language_do_no_harm():
    assert is_written_in("用 Python 写：def f(x): return x，这是一个很简单的函数，没有什么特别的地方需要解释。", "zh")
    assert not is_written_in("用 Python is a language that many people like.", "zh")
    assert not is_written_in("用 Python 写一个函数就可以了，请看下面的例子。", "en")


def test_an_unknown_language_is_refused():
    with pytest.raises(KDError, match=r"--language fr is not known; languages are zh, ja"):
        Filters(language="fr")


def test_repetition_is_the_share_of_grams_that_stood_before():
    assert repetition("one two three four five") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("我我我我我我") == pytest.approx(2 / 3)
    assert repetition("too short") == 0


@given(st.lists(st.sampled_from(["red", "green", "blue", "是"]), max_size=40))
def test_repetition_is_a_share(words):
    share = repetition(" ".join(words))
    grams = [tuple(words[n : n + NGRAM]) for n in range(len(words) - NGRAM + 1)]
    assert share == pytest.approx(sum(gram in grams[:n] for n, gram in enumerate(grams)) / max(len(grams), 1))


@pytest.mark.parametrize(
    ("filters", "tokens", "reason", "kind"),
    [
        (Filters(), 5, "length", "cut off"),
        (Filters(finish="any"), 5, "length", None),
        (Filters(min_length=5), 4, "stop", "too short"),
        (Filters(min_length=5, max_length=5), 5, "stop", None),
        (Filters(max_length=5), 6, "stop", "too long"),
    ],
)
def test_form(filters, tokens, reason, kind):
    if kind is None:
        filters.check_form(tokens, reason)
        return
    with pytest.raises(RowError) as error:
        filters.check_form(tokens, reason)
    assert error.value.kind == kind


def test_text():
    with pytest.raises(RowError, match="20% of its 4-grams"):
        Filters(max_repetition=0.1).check_text("a b c d a b c d", "")
    Filters(max_repetition=0.25).check_text("a b c d a b c d", "")
    with pytest.raises(RowError, match="not written in en"):
        Filters(language="en").check_text("<think>\nof course\n</think>\n\n四", "四")
