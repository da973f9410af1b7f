"""KDSample: the student's and the teacher's view around one response."""

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")
BOOK = [{"role": "system", "content": "A1 B2"}, {"role": "user", "content": "say A"}]
ROW = {"messages": [{"role": "user", "content": "say A"}, {"role": "assistant", "content": "1"}]}
WAIT = {"role": "assistant", "content": "Wait.", "loss_scale": 0.5}


@pytest.fixture
def sample_type():
    from swift_kd_plugin.host.samples.sample import KDSample

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
    with pytest.raises(ValueError, match=r"'say A' has both teacher_messages and teacher_prompt"):
        sample_type.from_row({**ROW, "teacher_messages": BOOK, "teacher_prompt": "x"})


def test_a_sample_without_a_response_is_named(sample_type):
    sample = sample_type.from_row({"messages": ROW["messages"][:1], "teacher_messages": BOOK})
    with pytest.raises(ValueError, match="'say A' has no response"):
        sample.build_teacher_view()


@pytest.mark.parametrize("said", [[], [WAIT], [WAIT, WAIT]])
def test_calls_of_tools_are_a_response(sample_type, said):
    """With what is said in front of them: both views share it, and what a model writes stands in its place."""
    question, call = ROW["messages"][0], {"role": "tool_call", "content": "{}"}
    turns = [question, {"role": "assistant", "content": "0"}, question, *said, call, call]
    sample = sample_type.from_row({"messages": turns, "teacher_messages": BOOK})
    assert sample.has_response
    assert sample.prompt_turns == turns[:3]
    assert sample.build_teacher_view()
    assert sample.teacher_messages == [*BOOK, *said, call, call]
    weights = {"loss_scale": 0.5} if said else {}
    assert sample.answered([3], "9", "stop").messages == [*turns[:3], {"role": "assistant", "content": "9", **weights}]
    assert sample_type.from_row({"messages": turns}).teacher_prompt_messages() == turns[:3]


def test_tools_and_template_settings_alone_make_a_view(sample_type):
    for column, value in {"teacher_tools": [{"name": "add"}], "teacher_chat_template_kwargs": {"x": 1}}.items():
        sample = sample_type.from_row({**ROW, "tools": [{"name": "no"}], column: value})
        assert sample.build_teacher_view()
        encoded = sample.to_teacher_template_dict()
        assert encoded[column.removeprefix("teacher_")] == value
        assert encoded["messages"] == ROW["messages"]
        assert column not in sample.extra


def test_what_the_teacher_is_not_given_is_the_students(sample_type):
    sample = sample_type.from_row(
        {**ROW, "tools": ["t"], "chat_template_kwargs": {"enable_thinking": False}, "teacher_messages": BOOK}
    )
    sample.build_teacher_view()
    encoded = sample.to_teacher_template_dict()
    assert (encoded["tools"], encoded["chat_template_kwargs"]) == (["t"], {"enable_thinking": False})


def test_empty_columns_take_away_what_the_student_has(sample_type):
    row = {**ROW, "tools": ["t"], "images": ["a.png"], "chat_template_kwargs": {"enable_thinking": True}}
    empty = {"teacher_tools": [], "teacher_images": [], "teacher_chat_template_kwargs": {}}
    sample = sample_type.from_row({**row, **empty})
    assert sample.build_teacher_view()
    encoded = sample.to_teacher_template_dict()
    assert (encoded["tools"], encoded["images"], encoded["chat_template_kwargs"]) == ([], [], {})


def test_nulls_of_arrow_are_no_settings(sample_type):
    sample = sample_type.from_row({**ROW, "teacher_chat_template_kwargs": {"enable_thinking": True, "effort": None}})
    assert sample.teacher_chat_template_kwargs == {"enable_thinking": True}


def test_a_stock_view_follows_the_response_that_the_student_wrote(sample_type):
    sample = sample_type.from_row({**ROW, "teacher_prompt": "A is 1"})
    sample.build_teacher_view()
    sample.messages = [ROW["messages"][0], {"role": "assistant", "content": "9"}]
    assert sample.build_teacher_view()
    assert [message["content"] for message in sample.teacher_messages] == ["A is 1", "9"]


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"dataset": "/data/pairs.jsonl", "kd_row": 17, "kd_id": "q-17"}, "/data/pairs.jsonl, line 17 (id 'q-17')"),
        ({"dataset": "org/pairs", "kd_row": 17}, "org/pairs, row 17"),
        ({"dataset": "pairs.jsonl", "kd_id": "3"}, "pairs.jsonl, the row with the id '3'"),
        (
            {"kd_source": "data/exp.jsonl", "dataset": "pairs.jsonl", "kd_row": 5, "kd_id": "q"},
            "data/exp.jsonl, line 5 (id 'q')",
        ),
        ({"kd_row": 1}, "the dataset, row 1"),
        ({"dataset": "pairs.jsonl"}, "The sample with the last user message 'say A'"),
    ],
)
def test_a_sample_has_a_name(sample_type, columns, name):
    assert sample_type.from_row({**ROW, **columns}).name == name


@pytest.mark.parametrize("thought", ["", "Count."])
def test_a_thought_alone_makes_a_view(sample_type, thought):
    sample = sample_type.from_row({**ROW, "teacher_thought": thought})
    assert sample.build_teacher_view()
    assert sample.to_teacher_template_dict()["messages"] == ROW["messages"]
    assert sample.extra == {}


def test_a_weight_makes_no_view(sample_type):
    sample = sample_type.from_row({**ROW, "think_loss": 0.5, "teacher_thought": None})
    assert not sample.build_teacher_view()
    assert sample.think_loss == 0.5
