"""KDSample: the student's and the teacher's view around one response."""

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")
BOOK = [{"role": "system", "content": "A1 B2"}, {"role": "user", "content": "say A"}]
ROW = {"messages": [{"role": "user", "content": "say A"}, {"role": "assistant", "content": "1"}]}


@pytest.fixture
def sample_type():
    from swift_kd_plugin.host.sample import KDSample

    return KDSample


def test_the_teacher_sees_its_whole_view_and_the_same_response(sample_type):
    sample = sample_type.from_row({**ROW, "teacher_messages": BOOK, "id": 7})
    assert sample.build_teacher_view()
    assert sample.teacher_messages == [*BOOK, {"role": "assistant", "content": "1"}]
    assert sample.messages == ROW["messages"]
    assert sample.extra == {"id": 7}


def test_the_view_follows_the_response_that_the_student_wrote(sample_type):
    sample = sample_type.from_row({**ROW, "teacher_messages": BOOK})
    sample.build_teacher_view()
    sample.messages = [ROW["messages"][0], {"role": "assistant", "content": "9"}]
    assert sample.build_teacher_view()
    assert sample.teacher_messages[-1]["content"] == "9"


def test_the_dataset_row_is_not_changed(sample_type):
    row = {**ROW, "teacher_messages": [dict(turn) for turn in BOOK]}
    sample = sample_type.from_row(row)
    sample.build_teacher_view()
    sample.teacher_messages[0]["content"] = "changed"
    assert row["teacher_messages"] == BOOK
    assert sample.teacher_view == BOOK


def test_stock_teacher_prompt_keeps_its_meaning(sample_type):
    sample = sample_type.from_row({**ROW, "teacher_prompt": "say A, where A is 1"})
    assert sample.build_teacher_view()
    assert sample.teacher_messages[0]["content"] == "say A, where A is 1"


def test_a_sample_without_a_view_is_encoded_like_the_students(sample_type):
    sample = sample_type.from_row(ROW)
    assert not sample.build_teacher_view()
    assert sample.to_teacher_template_dict()["messages"] == ROW["messages"]


def test_two_teacher_columns_are_refused(sample_type):
    with pytest.raises(ValueError, match=r"both teacher_messages and teacher_prompt .*'say A'"):
        sample_type.from_row({**ROW, "teacher_messages": BOOK, "teacher_prompt": "x"})


def test_a_sample_without_a_response_is_named(sample_type):
    sample = sample_type.from_row({"messages": ROW["messages"][:1], "teacher_messages": BOOK})
    with pytest.raises(ValueError, match="'say A' has no response"):
        sample.build_teacher_view()


class Template:
    def safe_decode(self, tokens):
        return " ".join(map(str, tokens))


@pytest.mark.parametrize(
    ("student", "teacher", "position"),
    [([-100, 5, 6], [-100, -100, 5, 7], 1), ([-100, 5], [5, 6], 1), ([5], [], 0)],
)
def test_other_response_tokens_in_the_two_views_are_refused(sample_type, student, teacher, position):
    from swift_kd_plugin.host.pairing import check_shared_response

    with pytest.raises(ValueError, match=f"'say A'.*first difference at position {position}"):
        check_shared_response(sample_type.from_row(ROW), student, teacher, Template())


def test_the_same_response_tokens_pass_wherever_they_lie(sample_type):
    from swift_kd_plugin.host.pairing import check_shared_response

    check_shared_response(sample_type.from_row(ROW), [-100, 5, 6], [-100, -100, 5, -100, 6], Template())
