"""What turns say beside their text, through the real command."""

from pathlib import Path

from transformers import AutoTokenizer

from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.rows import Place
from swift_kd_plugin.host.samples.preview import load_training_template, preview
from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import megatron_rlhf
from tests.recorders.recorded_runs import train_and_record_losses

TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str | None, **keys) -> dict:
    return {"role": "assistant", "content": text, **keys}


CALL = {"name": "add", "arguments": '{"x": 1}'}
ROWS = [
    {"messages": [user("1?"), bot("first", weight=0), user("2?"), bot("second", weight=1)]},
    {"messages": [user("1?"), bot("third", weight=1), user("2?"), bot("fourth", weight=0)]},
    {"messages": [user("2 + 3?"), bot("5", thinking="two and three")]},
    {"messages": [user("say 1"), bot("1", loss_scale=0.5)], "tools": ""},
    {
        "messages": [
            user("add 1"),
            bot(None, function_call=CALL),
            {"role": "function", "content": "2"},
            bot("It is 2."),
        ],
        "functions": [TOOL["function"]],
    },
    {
        "messages": [
            user("add 1"),
            bot("Wait.", tool_calls=[{"type": "function", "function": CALL}]),
            {"role": "tool", "content": "<tool_response>\n2\n</tool_response>"},
            bot("It was 2."),
        ],
        "tools": [TOOL],
    },
    {"messages": [user("say 2"), bot("2", vote=3)], "tools": None},
    {"messages": [user("say 3"), bot("on")], "teacher_tools": ""},
]
TRAINED = [
    *("second<|im_end|>\n", "third<|im_end|>\n", "<think>\ntwo and three\n</think>\n\n5<|im_end|>\n"),
    *("1<|im_end|>\n", "It is 2.<|im_end|>\n", "It was 2.<|im_end|>\n", "2<|im_end|>\n", "on<|im_end|>\n"),
]


def longest_row(model: Path) -> int:
    """In tokens, as `swift-kd show` counts them."""
    template = load_training_template(str(model), "qwen3", "qwen3", "last_round", None)
    rows = (to_row(dict(row), Place("rows.jsonl", number)) for number, row in enumerate(ROWS))
    views = (next(iter(preview(row, template).values())) for row in rows)
    return max(sum(len(piece.ids) for piece in view) for view in views)


def test_what_is_trained_of_them(flags, material, tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "data.yaml").write_text("it: {type: rows, source: rows.jsonl}\n")
    tokenizer, longest = AutoTokenizer.from_pretrained(material / "student"), longest_row(material / "student")
    for name, changes in {
        "plain": {"dataset": tmp_path / "rows.jsonl"},
        "named": {"dataset": "it", "kd_datasets": tmp_path / "data.yaml"},
    }.items():
        run, (records,) = train_and_record_losses(tmp_path / name, flags, **changes, max_length=longest)
        trained, halves = [], 0
        for record in records:
            scale = record["loss_scale"]
            for number in record["index"].unique().tolist():
                chosen = (record["index"] == number) & (record["labels"] != -100)
                trained.append(tokenizer.decode(record["labels"][chosen]))
                halves += 0 if scale is None else int((scale[chosen] == 0.5).sum())
        assert sorted(trained) == sorted(TRAINED)
        assert "longer than --max_length" not in run.log
        assert halves == len(tokenizer("1<|im_end|>\n")["input_ids"])
        assert run.log.count("note: 1 x response that is not trained") == 1
        assert run.log.count("note: 1 x the key 'vote' of a turn, which is not read") == 1


SEEN = [
    {"role": "system", "content": "a book"},
    user("add 1"),
    bot("Wait.", tool_calls=[{"type": "function", "function": CALL}]),
    {"role": "tool", "content": {"sum": 2}},
]
TO_WRITE = [
    *ROWS,
    {"messages": [user("add 1"), bot("Wait.", tool_calls=[{"type": "function", "function": CALL}])], "tools": [TOOL]},
    {"messages": [user("add 1"), {"role": "tool_call", "content": CALL}], "tools": [TOOL], "teacher_messages": SEEN},
    {"messages": [user("add 1"), {"role": "tool_call", "content": CALL}, bot("Done.")], "tools": [TOOL]},
    {"messages": [user("say 4"), bot("Well, "), bot("4", loss_scale=0.5)], "teacher_messages": SEEN},
    {"messages": [*ROWS[5]["messages"][:2], {"role": "tool", "content": {"sum": 2}}], "tools": [TOOL]},
    {"messages": [user("add 1"), bot("2")], "teacher_messages": SEEN, "teacher_tools": [TOOL]},
]


def test_streams_of_several_files(flags, tmp_path):
    """Of one of them the first row has a call."""
    for name, rows in {"calls": TO_WRITE[5:6], "others": ROWS[:4]}.items():
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    files = [tmp_path / "calls.jsonl", tmp_path / "others.jsonl"]
    for more in ({}, {"interleave_prob": [0.5, 0.5]}):
        changes = {"dataset": files, "streaming": True, "max_length": 2048, **more}
        run = megatron_rlhf(tmp_path / f"run{len(more)}", {**flags, **changes}).expect_success()
        assert len(run.steps) == 2


def test_models_write_behind_any_turns(flags, tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [{**row, "gold": f"gold {n}"} for n, row in enumerate(TO_WRITE, 1)])
    changes = {"dataset": tmp_path / "rows.jsonl", "lmbda": 0.5, "seq_kd": True, "max_length": 2048}
    changes |= {"kd_student_engine": "megatron", "kd_teacher_engine": "transformers", "max_completion_length": 4}
    run = megatron_rlhf(
        tmp_path / "run", {**flags, **changes, "global_batch_size": len(TO_WRITE), "log_completions": True}
    )
    assert all(step["grad_norm"] > 0 for step in run.expect_success().steps)
    written = read_json_lines(run.output / "completions.jsonl")
    assert {row["step"] for row in written} == {1, 2}
    assert all(row["gold"] == f"gold {row['kd_row']}" for row in written)
    assert {row["response"] for row in written if row["kd_row"] == len(TO_WRITE)} == {"2"}
