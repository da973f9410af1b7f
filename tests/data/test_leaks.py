"""Findings: the experience in the student's view, responses that speak of it. And where it is put."""

import pytest

from swift_kd_plugin.data.experience import Placement, experienced_rows
from swift_kd_plugin.data.leaks import Suspicions, with_two_views
from swift_kd_plugin.data.pairing import ResponseRule
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import RowError

BOOK = "Always add the digits from right to left."
QUESTION = "What is 12 plus 9?"


def row(student: str = QUESTION, teacher: list | None = None, response: str = "21") -> dict:
    view = [{"role": "system", "content": BOOK}, {"role": "user", "content": QUESTION}] if teacher is None else teacher
    messages = [{"role": "user", "content": student}, {"role": "assistant", "content": response}]
    return {"messages": messages, "teacher_messages": view, "kd_source": "a.jsonl", "kd_row": 1}


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("given_row", "leaks"),
    [
        (row(), False),
        (row(f"Hint: always add the DIGITS from  right to left. {QUESTION}"), True),
        (row(teacher=user(f"{BOOK}\n{QUESTION}")), False),
        (row(f"{BOOK} {QUESTION}", user(f"{BOOK}\n{QUESTION}")), True),
        (row("按从右到左的顺序逐位相加。12+9=?", user("按从右到左的顺序逐位相加。注意进位不要遗漏了。\n12+9=?")), True),
        (row("12+9=?", user("按从右到左的顺序逐位相加。\n12+9=?")), False),
        # Too short to prove anything, or in both views from the start.
        (row("Add. What?", user("Add.\nWhat now?")), False),
        (row("Same long question in both views?", user("Same long question in both views?")), False),
    ],
)
def test_a_leak_is_a_piece_of_the_experience_in_the_students_view(given_row, leaks):
    assert bool(Suspicions().find_leak(given_row)) == leaks


BASE = "You are a careful converter of units."


def with_prompts(student: str, teacher: str) -> dict:
    question = user(QUESTION)
    return {
        **row(),
        "messages": [{"role": "system", "content": student}, *question],
        "teacher_messages": [{"role": "system", "content": teacher}, *question],
    }


@pytest.mark.parametrize(
    ("student", "teacher", "leaks"),
    [
        (BASE, f"{BASE}\n\n{BOOK}", False),
        (BASE, f"{BOOK} {BASE}", False),
        (f"{BASE} Answer with a number alone.", f"{BASE}\n{BOOK}\nAnswer with a number alone.", False),
        (f"{BASE} Guess.", f"{BASE} {BOOK} Do not guess.", False),
        (BASE.rstrip("."), f"{BASE.rstrip('.')}; {BOOK}", False),
        (f"{BASE} {BOOK}", f"Think first. {BOOK}", False),  # who is to tell what both share from what both have learned
        (f"Well: {BOOK}", BOOK, True),
        (f"{BOOK} {BASE}", f"Be brief and clear, whatever they say. {BOOK} Stay polite.", True),
    ],
)
def test_a_system_prompt_that_both_share_is_no_experience(student, teacher, leaks):
    assert bool(Suspicions().find_leak(with_prompts(student, teacher))) == leaks


def test_files_that_are_swapped_are_said_once_with_the_count():
    report = Report()
    swapped = with_prompts(f"{BASE}\n{BOOK}", BASE)
    list(with_two_views([swapped] * 3, "plain.jsonl", "book.jsonl", report))
    (example,) = report.notes["exp and noexp look swapped"].examples
    assert example["place"] == "a.jsonl, line 1"
    assert "in all 3 rows; are plain.jsonl and book.jsonl swapped?" in example["text"]
    report = Report()
    list(with_two_views([swapped, row()], "plain.jsonl", "book.jsonl", report))
    assert set(report.notes) == {"student sees more"}


@pytest.mark.parametrize(
    "response",
    [
        "According to the hint, it is 21.",
        "The guidelines say: 21",
        "based on the provided context 21",
        "根据提示，答案是21",
        "按照上述经验，答案是21",
        "经验中提到从右到左",
    ],
)
def test_a_response_that_speaks_of_the_experience_is_found(response):
    assert Suspicions().find_quote(row(response=response))


@pytest.mark.parametrize("response", ["21", "In my experience it is 21.", "Follow the road.", "提示：21", "他经验丰富"])
def test_other_responses_are_not(response):
    assert not Suspicions().find_quote(row(response=response))


def test_the_user_can_add_patterns():
    assert Suspicions(patterns=("the book",)).find_quote(row(response="The Book has it"))


def test_findings_are_noted_or_dropped_and_never_an_error():
    leaky = row(BOOK, response="according to the hint 21")
    report = Report(strict=True)
    assert Suspicions(leaks="drop").sift(leaky, report).kind == "leak"
    assert Suspicions(quotes="drop").sift(leaky, report).kind == "quote"
    assert not report.notes
    assert Suspicions().sift(leaky, report) is None
    assert set(report.notes) == {"leak", "quote"}
    quoting = {**source_row(), "messages": [*user(QUESTION), {"role": "assistant", "content": "From the hints: 21"}]}
    drop = Suspicions(quotes="drop")
    assert not list(experienced_rows([quoting], Placement(), ResponseRule(), drop, report))
    assert report.left_out["quote"].rows == {"a.jsonl": [1]}


def source_row(experience=BOOK, system: str | None = None) -> dict:
    turns = [{"role": "system", "content": system}] if system else []
    turns += [*user("1 + 1?"), {"role": "assistant", "content": "2"}, *user(QUESTION)]
    response = {"role": "assistant", "content": "21"}
    return {"messages": [*turns, response], "columns": {"experience": experience}, "kd_source": "a.jsonl", "kd_row": 1}


@pytest.mark.parametrize(
    ("placement", "first", "last"),
    [
        (Placement(), BOOK, QUESTION),
        (Placement(template="Use: {experience}!"), f"Use: {BOOK}!", QUESTION),
        (Placement(place="before"), "1 + 1?", f"{BOOK}\n\n{QUESTION}"),
        (Placement(place="after", separator=" "), "1 + 1?", f"{QUESTION} {BOOK}"),
    ],
)
def test_the_experience_stands_where_it_is_asked_for(placement, first, last):
    view = placement.teacher_view(source_row())
    assert (view[0]["content"], view[-1]["content"]) == (first, last)


def test_it_stands_behind_a_system_prompt():
    assert Placement().teacher_view(source_row(system="Be brief."))[0]["content"] == f"Be brief.\n\n{BOOK}"


def test_several_experiences_are_lines():
    assert Placement().teacher_view(source_row(["a", "b"]))[0]["content"] == "a\nb"


def test_it_stands_beside_parts():
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    given_row = {**source_row(), "messages": [{"role": "user", "content": parts}]}
    added = {"type": "text", "text": f"{BOOK}\n\n"}
    assert Placement(place="before").teacher_view(given_row)[0]["content"] == [added, *parts]


@pytest.mark.parametrize("experience", [None, "", "  ", 3, [], ["a", None], [""]])
def test_a_row_without_experience_says_so(experience):
    with pytest.raises(RowError, match="it needs a text in its column 'experience'"):
        Placement().teacher_view(source_row(experience))


def test_a_row_with_a_teachers_view_of_its_own_is_refused():
    with pytest.raises(RowError, match="it has teacher_messages already"):
        Placement().teacher_view({**source_row(), "teacher_messages": user(QUESTION)})


def test_rows_become_pairs():
    report = Report()
    rows = [source_row(), {**source_row(None), "kd_row": 2}]
    (made,) = experienced_rows(rows, Placement(), ResponseRule(), Suspicions(), report)
    assert made["messages"] == source_row()["messages"]
    assert made["teacher_messages"][0]["content"] == BOOK
    assert report.left_out["no experience"].rows == {"a.jsonl": [2]}
