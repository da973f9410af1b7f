import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.verifiers import Gold, Scorer, VerifierError, extract, find_number
from tests.generation.row_factories import make_row


def score(name: str, response: str, gold: str, pattern: str | None = None) -> float:
    return Scorer.find(name, Gold(pattern=pattern)).score(make_row(response=gold), response)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 4.", 4),
        ("from 3 to 1,234.50 dollars", Fraction("1234.5")),
        ("-7", -7),
        ("8-5", 5),
        ("x = .5", Fraction(1, 2)),
        ("1/4 of it", Fraction(1, 4)),
        ("2e3", 2000),
        ("答案是12。", 12),
        (r"so \boxed{42}, not 43", 42),
        (r"\boxed{\frac{3}{2}}", Fraction(3, 2)),
        (r"it is $\dfrac12$", Fraction(1, 2)),
        (r"\boxed{x = {7}} of 9", 7),
        (r"\boxed{8", 8),
        ("−5", -5),
        ("–5", -5),
        (r"\boxed{5\sqrt{2}}", None),
        (r"\boxed{(3, 2)}", None),
        (r"\boxed{7\text{ cm}^2}", 7),
        (r"\boxed{1.5 \times 10^{3}}", 1500),
        (r"\boxed{2\frac{1}{2}}", Fraction(5, 2)),
        (r"\boxed{1000000000000000000001\frac{1}{2}}", Fraction(2 * 10**21 + 3, 2)),
        (rf"2\frac{{{'1' * 5000}}}{{{'1' * 5000}}}", Fraction(3)),
        (rf"{'9' * 600_000}\frac{{1}}{{2}}", None),
        (r"\boxed{\frac{3}{-4}}", Fraction(-3, 4)),
        (r"\boxed{99,\!080}", 99080),
        (r"\boxed{1{,}234}", 1234),
        ("1/2.5", Fraction(2, 5)),
        ("9" * 60_000, None),
        ("3/0", None),
        ("1e1000", None),
        ("1e12", 10**12),
        ("3 and 4\n#### 7", 7),
        ("B2 and E3", None),
        ("none", None),
        ("50%", 50),
        ("1" * 5000, (10**5000 - 1) // 9),
        ("-" + "9" * 5000 + ".5", Fraction(-(10**5000) + 1) - Fraction(1, 2)),
        ("1/" + "1" * 5000, Fraction(9, 10**5000 - 1)),
        ("4" + ",000" * 2000, 4 * 10**6000),
        ("1e999", 10**999),
        ("0." + "0" * 5000 + "1", Fraction(1, 10**5001)),
        ("٣٤", 34),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else "",
)
def test_numbers(text, number):
    assert find_number(text) == number


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_found_in_every_form(number):
    for form in (f"{number}", f"{number:,}", f"It is {number}.", rf"1 \boxed{{{number}}} 2", f"{number}.0"):
        assert find_number(form) == number


@pytest.mark.parametrize(
    ("name", "response", "gold", "right"),
    [
        ("exact", " Ｐaris ", "paris", 1),
        ("exact", "<think>\nRome?\n</think>\n\nParis", "<think>\nwell\n</think>\n\nParis", 1),
        ("exact", "Paris.", "Paris", 0),
        ("numeric", "So 1,000 it is", "#### 1000", 1),
        ("numeric", "0.333333333", "1/3", 1),
        ("numeric", "5", "4", 0),
        ("numeric", "1234568", "1234567", 0),
        ("numeric", "1e-9", "6.63e-34", 0),
        ("numeric", "0.0000005", "0", 0),
        ("numeric", "3.1415927", "3.14159265", 1),
        ("numeric", "no idea", "4", 0),
        ("regex", "the answer: B", "answer: [AB]$", 1),
        ("regex", "the answer: C", "answer: [AB]$", 0),
    ],
)
def test_built_in_verifiers(name, response, gold, right):
    assert score(name, response, gold) == right


@pytest.mark.parametrize("kind", ["exact", "numeric", "regex"])
@settings(deadline=None)
@given(
    text=st.one_of(
        st.text(), st.from_regex(r"[-+]?[\d,]{0,30}\.?\d*([eE][-+]?\d{0,4})?(/\d*)?"), st.text("<>/think \n")
    )
)
def test_nothing_that_a_model_writes_raises(kind, text):
    """In a verifier, a vote or a metric of that name."""
    gold = Gold(pattern=r"(\d+)")
    for answer in (text, "1" * 5000 + text):
        assert Scorer.find(kind, gold).score(make_row(response="4"), answer) in (0, 1)
        extract(kind, answer, gold)


@pytest.mark.parametrize(
    "piece", ["9", " ", "9\\,", "1 ", "\\frac", "\\frac{1}{", "\\boxed", "\\text{a}^", "\\times 10", "1,000"]
)
def test_an_answer_that_repeats_itself_is_read_in_time_that_grows_with_its_length(piece):
    def seconds(length: int) -> float:
        text = (piece * length)[:length]
        start = time.process_time()
        extract("numeric", text, Gold())
        return time.process_time() - start

    assert seconds(60_000) < 1


def test_a_pattern_finds_the_last_answer():
    pattern = r"answer: (\w)"
    assert score("regex", "answer: A ... answer: b", "B", pattern) == 1
    assert score("regex", "answer: B ... answer: A", "B", pattern) == 0
    assert score("regex", "none", "B", pattern) == 0
    assert extract("regex", "answer: A ... answer: B", Gold(pattern=pattern)) == "b"


def test_gold_answers_stand_in_a_column_or_in_the_dataset():
    row = make_row(response="5", columns={"right": 4, "options": ["a"]})
    assert Scorer.find("exact", Gold("right")).score(row, "4") == 1
    assert Scorer.find("exact", Gold()).score(row, "5") == 1
    with pytest.raises(VerifierError, match=r"exact failed on a.jsonl, line 7: ValueError: the row has no column 'no'"):
        Scorer.find("exact", Gold("no")).score(row, "4")
    with pytest.raises(VerifierError, match="the row has no response to compare with"):
        Scorer.find("exact", Gold()).score(make_row(), "4")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "own_checks.py").write_text(
        "def long(row, response): return len(response) > len(row['messages'][0]['content']) + row['bonus']\n"
        "def graded(row, response): return len(response) / 10\n"
        "def broken(row, response): return row['none']\n"
        "def wordy(row, response): return 'yes'\n"
        "def lost(row, response): return float('nan')\n"
        "value = 3\n"
    )


def test_a_users_function_sees_the_row_as_in_a_file(own):
    row = make_row(columns={"bonus": 2})
    scorer = Scorer.find("own_checks:long", Gold())
    assert scorer.score(row, "123456789") == 1.0
    assert scorer.score(row, "1") == 0.0
    assert Scorer.find("own_checks:graded", Gold()).score(row, "1234") == 0.4


@pytest.mark.parametrize(
    ("function", "said"),
    [("broken", "KeyError: 'none'"), ("wordy", "it returned 'yes', which is neither"), ("lost", "it returned nan")],
)
def test_a_function_that_fails_names_itself_the_row_and_the_error(own, function, said):
    with pytest.raises(VerifierError) as error:
        Scorer.find(f"own_checks:{function}", Gold()).score(make_row(), "4")
    assert f"The verifier own_checks:{function} failed on a.jsonl, line 7: " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("numerik", r"did you mean 'numeric'\?"),
        ("own_checks:none", "AttributeError"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("own_checks:value", "is no function"),
    ],
)
def test_a_verifier_that_does_not_exist(own, name, said):
    with pytest.raises(KDError, match=said):
        Scorer.find(name, Gold())


def test_a_pattern_that_is_none():
    with pytest.raises(KDError, match=r"--pattern '\(' is no regular expression"):
        Scorer.find("regex", Gold(pattern="("))
