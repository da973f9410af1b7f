"""What turns say beside their text, through the real command."""

from transformers import AutoTokenizer

from tests.json_lines import write_json_lines
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


def test_what_is_trained_of_them(flags, material, tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "data.yaml").write_text("it: {type: rows, source: rows.jsonl}\n")
    tokenizer = AutoTokenizer.from_pretrained(material / "student")
    for name, changes in {
        "plain": {"dataset": tmp_path / "rows.jsonl"},
        "named": {"dataset": "it", "kd_datasets": tmp_path / "data.yaml"},
    }.items():
        run, (records,) = train_and_record_losses(tmp_path / name, flags, **changes, max_length=2048)
        trained, halves = [], 0
        for record in records:
            scale = record["loss_scale"]
            for number in record["index"].unique().tolist():
                chosen = (record["index"] == number) & (record["labels"] != -100)
                trained.append(tokenizer.decode(record["labels"][chosen]))
                halves += 0 if scale is None else int((scale[chosen] == 0.5).sum())
        assert sorted(trained) == sorted(TRAINED)
        assert halves == len(tokenizer("1<|im_end|>\n")["input_ids"])
        assert run.log.count("note: 1 x response that is not trained") == 1
        assert run.log.count("note: 1 x the key 'vote' of a turn, which is not read") == 1
