"""Files and ids of the command line through ms-swift's own loading, with rows read and checked as in a data.yaml."""

import json

import pytest

from swift_kd_plugin.errors import KDError
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.usefixtures("cpu_backend")
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
VIEW = [{"role": "system", "content": "book"}, {"role": "user", "content": "q"}]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads rows of a file, or names, as a run of GKD does."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    from swift.dataset import load_dataset

    from swift_kd_plugin.host.rows.row_loader import Reading, rows_read_here
    from swift_kd_plugin.host.start.host_patches import HOST_LEDGER

    HOST_LEDGER.arm()

    def load_rows(*rows_or_names, strict=True, keep=(), all_columns=False, trains=None, **kwargs):
        names = rows_or_names
        if not isinstance(names[0], str):
            names = [str(tmp_path / "rows.jsonl")]
            write_json_lines(tmp_path / "rows.jsonl", rows_or_names[0])
        with rows_read_here(names, Reading(keep, all_columns, trains)):
            return load_dataset(list(names), strict=strict, **kwargs)[0]

    yield load_rows
    HOST_LEDGER.disarm()


def test_the_teacher_column_survives(load):
    call = {"role": "tool_call", "content": '{"name": "add", "arguments": {}}'}
    tool = [*VIEW, call, {"role": "tool", "content": "4", "name": "add"}]
    rows = load([{**GOOD, "teacher_messages": VIEW}, {**GOOD, "teacher_messages": tool}, GOOD])
    assert rows["teacher_messages"] == [VIEW, tool, None]
    assert rows["messages"] == [GOOD["messages"]] * 3


ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}
SAY = {"type": "function", "function": {"name": "say", "description": "aloud"}}


@pytest.mark.parametrize("streaming", [False, True])
def test_all_columns_of_the_teacher_survive(load, streaming):
    rows = load(
        [
            {**GOOD, "teacher_tools": [ADD], "teacher_chat_template_kwargs": {"enable_thinking": True}},
            {**GOOD, "teacher_tools": [SAY], "teacher_images": ["a.png"]},
            {**GOOD, "teacher_tools": [], "teacher_chat_template_kwargs": {"reasoning_effort": "low"}},
        ],
        streaming=streaming,
    )
    rows = list(rows)
    assert [row["teacher_tools"] for row in rows] == [[ADD], [SAY], []]
    assert [row["teacher_images"] for row in rows] == [None, [{"bytes": None, "path": "a.png"}], None]
    given = [row["teacher_chat_template_kwargs"] for row in rows]
    assert (given[0]["enable_thinking"], given[1], given[2]["reasoning_effort"]) == (True, None, "low")


@pytest.mark.parametrize("streaming", [False, True])
def test_thoughts_weights_and_sources_survive(load, streaming):
    rows = load(
        [
            {**GOOD, "teacher_thought": "Count.", "kd_source": "exp.jsonl"},
            {**GOOD, "teacher_thought": "", "think_loss": 0},
            {**GOOD, "think_loss": 0.5},
            {**GOOD, "think_loss": 1},
        ],
        streaming=streaming,
    )
    rows = list(rows)
    assert [row["teacher_thought"] for row in rows] == ["Count.", "", None, None]
    assert [row["think_loss"] for row in rows] == [None, 0, 0.5, 1]
    assert [row["kd_source"].rpartition("/")[2] for row in rows] == ["rows.jsonl"] * 4


def test_whole_and_fractional_weights_of_two_files_mix(load, tmp_path):
    files = []
    for number, columns in enumerate(({"think_loss": 0}, {"think_loss": 0.5}, {"teacher_thought": "a"}, {})):
        files.append(str(tmp_path / f"{number}.jsonl"))
        write_json_lines(tmp_path / f"{number}.jsonl", [{**GOOD, **columns}])
    rows = load(*files)
    assert [row.get("think_loss") for row in rows] == [0, 0.5, None, None]
    assert [row.get("teacher_thought") for row in rows] == [None, None, "a", None]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_have_numbers_keep_them(load, streaming):
    """Those of the file that they came from, where rows were merged or chosen before."""
    rows = [{**GOOD, "kd_source": "exp.jsonl", "kd_row": number, "kd_id": "q", "id": 1} for number in (7, 9)]
    loaded = list(load(rows, streaming=streaming))
    assert [(row["kd_source"], row["kd_row"], row["kd_id"]) for row in loaded] == [
        ("exp.jsonl", 7, "q"),
        ("exp.jsonl", 9, "q"),
    ]


def test_a_bad_row_is_named_by_the_file_that_it_came_from(load):
    rows = [{**GOOD, "kd_source": "exp.jsonl", "kd_row": number} for number in (7, 9)]
    rows[1]["messages"] = []
    with pytest.raises(KDError, match=r"rows\.jsonl, line 2 cannot be used: its column 'messages' is empty"):
        load(rows)


def test_tools_may_be_json_text(load):
    assert load([{**GOOD, "teacher_tools": json.dumps([ADD])}])["teacher_tools"] == [[ADD]]


def test_teacher_images_may_be_paths_or_dicts(load):
    path = {"bytes": None, "path": "b.png"}
    for given in ("b.png", ["b.png"], {"path": "b.png"}, [{"path": "b.png"}]):
        assert load([{**GOOD, "teacher_images": given}])["teacher_images"] == [[path]]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_keeps_its_number_and_dataset(load, streaming):
    from swift_kd_plugin.host.samples.sample import KDSample

    rows = list(load([{**GOOD, "id": f"q-{i}"} for i in range(40)], shuffle=True, streaming=streaming))
    assert sorted(row["kd_row"] for row in rows) == list(range(1, 41))
    assert rows[0]["kd_row"] != 1
    name = KDSample.from_row(rows[0]).name
    assert name.partition(" (")[0].endswith(f"/rows.jsonl, line {rows[0]['kd_row']}")
    assert name.endswith(f"(id 'q-{rows[0]['kd_row'] - 1}')")


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_kept_on_demand(load, streaming):
    rows = [{**GOOD, "level": 1, "topic": "sums"}, {**GOOD, "topic": 2}]
    plain, some, every = (list(load(rows, streaming=streaming, **how)) for how in HOWS)
    assert "level" not in plain[0] or plain[0]["level"] is None
    assert [row["level"] for row in some] == [1, None]
    assert [(row["level"], row["topic"]) for row in every] == [(1, "sums"), (None, 2)]


def test_a_column_of_a_late_row_is_kept_with_all_others(load):
    rows = load([*[GOOD] * 1500, {**GOOD, "late": "x"}], all_columns=True)
    assert rows[1500]["late"] == "x"


HOWS = ({}, {"keep": ("level",)}, {"all_columns": True})


def test_the_mapping_of_ms_swift_is_as_before(load):
    from swift.dataset.dataset_meta import DATASET_MAPPING

    before = dict(DATASET_MAPPING)
    load([GOOD])
    assert before == DATASET_MAPPING


def test_columns_of_the_command_line_are_renamed(load):
    (row,) = load([{"frage": "2?", "antwort": "2"}], columns={"frage": "query", "antwort": "response"})
    assert [turn["content"] for turn in row["messages"]] == ["2?", "2"]


def test_a_folder_is_read_alike(load, tmp_path):
    """As a repository of a hub is: ms-swift loads it, and its rows are read here."""
    (tmp_path / "repo").mkdir()
    write_json_lines(tmp_path / "repo" / "train.jsonl", [{**GOOD, "teacher_thought": "hm", "teacher_tools": [ADD]}] * 3)
    rows = load(f"{tmp_path}/repo")
    assert (rows[0]["teacher_thought"], rows[0]["teacher_tools"], rows[2]["kd_row"]) == ("hm", [ADD], 3)
    write_json_lines(tmp_path / "repo" / "train.jsonl", [GOOD, {**GOOD, "think_loss": 7}])
    with pytest.raises(KDError, match=r"repo, row 2 cannot be used: its think_loss is 7.0, not a number from 0 to 1"):
        load(f"{tmp_path}/repo")


def test_what_a_users_preprocessor_makes_is_checked(load, tmp_path):
    from swift.dataset import DatasetMeta, MessagesPreprocessor, register_dataset

    class Mine(MessagesPreprocessor):
        def preprocess(self, row):
            if row.pop("skip", False):
                return None
            if row["messages"][0]["content"] == "raise":
                raise ValueError("I do not know this")
            return {**super().preprocess(row), "teacher_thought": "hm", "think_loss": row.pop("weight")}

    write_json_lines(tmp_path / "own.jsonl", [{**GOOD, "weight": 0, "skip": skip} for skip in (False, True)])
    path = str(tmp_path / "own.jsonl")
    register_dataset(DatasetMeta(dataset_name="mine", dataset_path=path, preprocess_func=Mine()), exist_ok=True)
    rows = load("mine")
    assert [(row["teacher_thought"], row["think_loss"]) for row in rows] == [("hm", 0)]  # it may filter on purpose
    write_json_lines(tmp_path / "own.jsonl", [{**GOOD, "weight": 0.5, "skip": False}])
    with pytest.raises(
        KDError, match=r"own.jsonl, line 1 cannot be used: it has think_loss 0.5 beside teacher_thought"
    ):
        load("mine")
    bad = {"messages": [{"role": "user", "content": "raise"}], "weight": 0, "skip": False}
    write_json_lines(tmp_path / "own.jsonl", [{**GOOD, "weight": 0, "skip": False}, bad])
    with pytest.raises(KDError, match=r"line 2 cannot be used: Mine says ValueError: I do not know this; mend the row"):
        load("mine")


def test_stock_drops_the_teacher_column(tmp_path):
    from swift.dataset import load_dataset

    file = tmp_path / "rows.jsonl"
    write_json_lines(file, [{**GOOD, "teacher_messages": VIEW}])
    rows = load_dataset([str(file)], load_from_cache_file=False)[0]
    assert "teacher_messages" not in rows.column_names


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"other": 1}, "it has the columns 'other', and needs messages, or a prompt with or without a response"),
        ({"messages": []}, "its column 'messages' is empty"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "turn 1 has the unknown role 'wizard'"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1 (user) has no content"),
        ({**GOOD, "teacher_messages": []}, "its column 'teacher_messages' is empty"),
        ({**GOOD, "teacher_messages": [{"role": "user"}]}, "turn 1 of teacher_messages (user) has no content"),
        ({**GOOD, "teacher_messages": GOOD["messages"]}, "its teacher_messages end with the role 'assistant'"),
        ({**GOOD, "teacher_messages": VIEW, "teacher_prompt": "q"}, "both teacher_messages and teacher_prompt"),
        ({**GOOD, "teacher_tools": [3]}, "tool 1 of teacher_tools is a number"),
        ({**GOOD, "teacher_chat_template_kwargs": "thinking"}, "its column 'teacher_chat_template_kwargs' is not JSON"),
        ({**GOOD, "teacher_chat_template_kwargs": {"response_prefix": "So"}}, "set response_prefix"),
        ({**GOOD, "teacher_images": [{"path": ""}]}, "image 1 of teacher_images has neither path nor bytes"),
        ({**GOOD, "teacher_thought": ["a"]}, "its column 'teacher_thought' is a list, not text"),
        ({**GOOD, "teacher_thought": "<think>a</think>"}, "its teacher_thought has think tags"),
        ({**GOOD, "think_loss": 1.5}, "its think_loss is 1.5, not a number from 0 to 1"),
        ({**GOOD, "think_loss": -1}, "its think_loss is -1"),
        ({**GOOD, "think_loss": True}, "its column 'think_loss' is True, not a number"),
        ({**GOOD, "think_loss": "all"}, "its column 'think_loss' is 'all', not a number"),
        ({**GOOD, "teacher_thought": "", "think_loss": 0.5}, "it has think_loss 0.5 beside teacher_thought"),
        ({**GOOD, "teacher_messages": [VIEW[1], VIEW[1]]}, "turn 2 of teacher_messages is a second user turn in a row"),
        ({**GOOD, "teacher_messages": [VIEW[1], {"role": "tool", "content": "4"}]}, "no tool was called"),
    ],
)
def test_a_bad_row_is_named_by_both_doors_in_the_same_words(load, tmp_path, row, reason):
    from swift_kd_plugin.data.build import Builder
    from swift_kd_plugin.data.data_yaml import read_data_yaml

    said = []
    with pytest.raises(KDError) as caught:
        load([GOOD, GOOD, row])
    said.append(str(caught.value).replace(f"{tmp_path}/", ""))
    (tmp_path / "data.yaml").write_text("a: {type: rows, source: rows.jsonl}")
    with pytest.raises(KDError) as caught:
        Builder(tmp_path, strict=True).dataset(read_data_yaml(tmp_path / "data.yaml")["a"])
    said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith("rows.jsonl, line 3 cannot be used: ")
    assert reason in said[0]
    assert "--kd_bad_rows drop" in said[0]


def test_bad_rows_can_be_dropped(load):
    assert len(load([GOOD, {"messages": []}, GOOD], strict=False)) == 2


PROMPT = {"prompt": "say 7"}
CHOSEN = {"prompt": "say 8", "chosen": "8", "rejected": "9"}
CALL = {"role": "tool_call", "content": '{"name": "add", "arguments": {}}'}
TOLD = {"messages": [GOOD["messages"][0], CALL, {"role": "tool", "content": "4"}]}
ASKING = {"messages": [*GOOD["messages"], {"role": "user", "content": "q2"}]}
MASKED = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a", "loss": False}]}
WEIGHTLESS = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a", "loss_scale": 0}]}
FORMER = {"messages": [*GOOD["messages"], {"role": "user", "content": "q2"}, MASKED["messages"][1]]}
NO_RESPONSE, NOT_TRAINED = "it has no response to distil on", "nothing of its response is trained"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PROMPT, NO_RESPONSE),
        (CHOSEN, "name the column that holds it (`gold: chosen` in a data.yaml)"),
        ({"messages": GOOD["messages"][:1], "response": "a"}, "`gold: response`"),
        (ASKING, NO_RESPONSE),
        (TOLD, NO_RESPONSE),
        (MASKED, NOT_TRAINED),
        (WEIGHTLESS, NOT_TRAINED),
        (FORMER, NOT_TRAINED),
    ],
)
def test_a_row_without_a_response_is_named_where_nobody_writes_one(load, row, reason, streaming):
    with pytest.raises(KDError) as caught:
        list(load([GOOD, row], trains="last_round+ignore_empty_think", streaming=streaming))
    assert "rows.jsonl, line 2 cannot be used: " in str(caught.value)
    assert reason in str(caught.value)
    rows = list(load([GOOD, row], trains="last_round", strict=False, streaming=streaming))
    assert [row["kd_row"] for row in rows] == [1]
    assert len(list(load([GOOD, row], streaming=streaming))) == 2


@pytest.mark.parametrize("rows", [[PROMPT, ASKING], [{"note": "what?"}]])
def test_a_file_of_which_no_row_is_left(load, rows):
    with pytest.raises(KDError, match=r"rows.jsonl has no row that can be used \(.*rows.jsonl, line 1: it has "):
        load(rows, trains="last_round", strict=False)


def test_rows_that_train_something_are_not_refused(load):
    early = {
        "messages": [
            {**GOOD["messages"][0]},
            {"role": "assistant", "content": "a", "loss": True},
            *FORMER["messages"][2:],
        ]
    }
    assert len(load([GOOD, early], trains="last_round")) == 2
    assert len(load([GOOD, FORMER, ASKING, TOLD], trains="default")) == 4
