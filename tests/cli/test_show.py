"""`swift-kd show`: both views of a row, as text and as tokens."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from swift_kd_plugin.cli.main import app
from swift_kd_plugin.cli.printed_rows import OWN, TRAINED, marked, text_views
from tests.json_lines import write_json_lines
from tests.launching.commands import environment, run_tool
from tests.paths import BASE_MODEL, DATA, ROOT

DATASETS = DATA / "data.yaml"
MODEL = ("--model", str(BASE_MODEL), "--model_type", "qwen3", "--template", "qwen3")
BOOK = "N2 X9 A8 J2 L5 G1 I8 S6 Z9 F8 V2 B2 R3 U1 E3 T5"


def run_show(*arguments: str, file: Path = DATASETS) -> tuple[int, str]:
    code, log, _ = run_tool(["swift-kd", "show", str(file), *arguments], ROOT, environment(None))
    return code, log


def show(*arguments: str) -> str:
    code, page = run_show(*arguments)
    assert code == 0, page
    return page


def test_without_a_model_it_shows_turns():
    page = show("pairs", "-n", "2")
    assert page.count("noexp.jsonl, line") == 2
    assert f"system: ⟦{BOOK}⟧\nuser: say ILFF\nassistant: «8588»" in page
    assert "--model FOLDER shows the tokens" in page


def test_with_a_model_it_shows_tokens_and_what_is_trained():
    page = show("pairs", "-n", "1", *MODEL, "--enable_thinking", "false")
    student, teacher = page.split("student: ")[1].split("teacher: ")
    assert student.startswith("24 tokens, 6 of them trained on\n")
    assert teacher.startswith("60 tokens, 6 of them trained on\n")
    assert "<think>\n\n</think>\n\n«8588<|im_end|>\n»" in student
    assert BOOK not in student
    assert f"⟦<|im_start|>system\n{BOOK}<|im_end|>\n⟧" in teacher


def test_a_thought_of_the_teacher_alone_is_its_own_and_not_trained():
    teacher = show("silent", "-n", "1", *MODEL).split("teacher: ")[1]
    assert "<think>⟦\nI8L5F8F8\n⟧</think>\n\n«8588<|im_end|>" in teacher


def test_tokens_can_be_told_apart():
    assert "8|5|8|8|<|im_end|>" in show("pairs", "-n", "1", *MODEL, "--tokens")


def test_colour_says_it_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True)
    text = marked("8588", TRAINED, console)
    assert (text.plain, str(text.style)) == ("8588", TRAINED)


def test_text_views_know_the_teachers_own_turns():
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "teacher_messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "teacher_thought": "t",
    }
    turns = text_views(row)["teacher"]
    assert [(role, style == OWN) for role, _, style in turns] == [
        ("system", True),
        ("user", False),
        ("thought", True),
        ("assistant", False),
    ]


def test_a_file_of_rows_needs_no_data_yaml():
    code, page = run_show("-n", "1", file=DATA / "exp.jsonl")
    assert code == 0, page
    assert "exp.jsonl, line 1" in page


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    """Files of each kind, a data.yaml whose last dataset cannot be read, and rows that training refuses."""
    asked, second = {"query": "q", "response": "r"}, {"role": "user", "content": "and?"}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    write_json_lines(tmp_path / "a.jsonl", [asked])
    (tmp_path / "a.json").write_text(json.dumps([asked]))
    (tmp_path / "a.csv").write_text("query,response\nq,r\n")
    pq.write_table(pa.Table.from_pylist([asked]), tmp_path / "a.parquet")
    write_json_lines(tmp_path / "questions.jsonl", [{"query": "q"}] * 4)
    write_json_lines(tmp_path / "refused.jsonl", [asked, *[{"messages": [second, second]}] * 4])
    write_json_lines(tmp_path / "chat.jsonl", [{"messages": [*turns, second, turns[1]]}])
    nodes = {name: {"type": "rows", "source": f"{name}.jsonl"} for name in ("questions", "refused")}
    nodes["refused"]["bad_rows"] = "error"
    nodes["none"] = {"type": "rows", "source": "a.jsonl", "thought": "cot"}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(nodes, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show_here(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["show", *arguments])
    return done.exit_code, done.output


def test_files_of_every_kind_are_shown_one_after_the_other(rows):
    names = ("a.jsonl", "a.json", "a.csv", "a.parquet")
    code, page = show_here(*names)
    assert code == 0, page
    assert page.count("assistant: «r»") == 4
    assert [page.index(f"read 1 rows of {name}") for name in names] == sorted(
        page.index(f"read 1 rows of {name}") for name in names
    )


def test_all_datasets_of_a_data_yaml_are_shown_and_what_cannot_be_read_is_said(rows):
    code, page = show_here("data.yaml")
    assert code == 1
    assert page.count("user: q") == 4
    assert "swift-kd show: error: none: no row has text in its column 'cot'" in page
    code, page = show_here("data.yaml", "refused", "questions")
    assert code == 0
    assert page.index("refused.jsonl, line 1") < page.index("questions.jsonl, line 1")


def test_what_training_makes_of_rows_is_said(rows):
    _, page = show_here("refused.jsonl")
    assert "refused in training, or left out with --kd_bad_rows drop: 4 x messages" in page
    assert page.count("a second user turn in a row") == 1
    assert "--strict" not in page
    _, page = show_here("questions.jsonl")
    assert "note: 4 x no response, at which training ends unless a model writes one" in page
    _, page = show_here("chat.jsonl")
    assert "note: 1 x answers that --loss_scale last_round does not train" in page
    assert "chat.jsonl, line 1: 1 of 2 answers; --loss_scale default trains all of them" in page
    assert "does not train" not in show_here("chat.jsonl", "--loss_scale", "all")[1]
    _, page = show_here("questions.jsonl", "refused.jsonl", "-q")
    assert "note: " not in page
    assert "refused in training, or left out with --kd_bad_rows drop: 4 x messages (refused.jsonl 2-5)\n" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("a.jsonl", "pairs"),
            "pairs does not exist; give a data.yaml or files of rows; behind a.jsonl, which is no data",
        ),
        (("nothing.jsonl",), "nothing.jsonl does not exist; give a data.yaml or files of rows."),
        (("a.jsonl", "--model", "./modl"), "./modl is no folder of a model (did you mean 'model'?); check the path."),
        (("a.jsonl", "--model", "modl"), "modl is no folder of a model (did you mean 'model'?); check the path."),
        (("a.jsonl", "--model", "model/none"), "model/none is no folder of a model; check the path."),
        (("a.jsonl", "--model", "model"), "model has no tokenizer"),
    ],
)
def test_files_and_models_that_are_not_there_are_said_at_once(rows, arguments, said):
    (rows / "model").mkdir()
    code, page = show_here(*arguments)
    assert code == 1
    assert page.startswith(f"swift-kd show: error: {said}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pears"], "has no dataset 'pears' (did you mean 'pairs'?)"),
        (["pairs", "--model", str(BASE_MODEL), "--model_type", "qwen3"], "has no template here"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message):
    code, log = run_show(*arguments)
    assert code == 1
    assert "swift-kd show: error: " in log
    assert message in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A data.yaml of rows that are not what one expects."""
    folder = tmp_path_factory.mktemp("odd")
    chinese = {"query": "你好🙂", "response": "<think>\n思考𠮷\n</think>\n\n答案是四🙂"}
    image = {"query": "<image>What?", "response": "A cat.", "images": ["nowhere.png"]}
    hint = {"id": 1, "system": "Count slowly. " * 3000, "query": "Twice? " * 6000, "response": "two " * 6000}
    rows = {
        "odd": [chinese, {"query": "no answer"}, {"query": "a broken �", "response": "�"}],
        "image": [image],
        "empty": [],
        "exp": [hint],
        "noexp": [{"id": 1, "query": hint["query"] + "Now."}],
    }
    for name, lines in rows.items():
        write_json_lines(folder / f"{name}.jsonl", lines)
    nodes = {name: {"type": "rows", "source": f"{name}.jsonl"} for name in ("odd", "image", "empty")}
    nodes["huge"] = {"type": "exp_noexp", "exp": "exp.jsonl", "noexp": "noexp.jsonl"}
    (folder / "data.yaml").write_text(yaml.safe_dump(nodes))
    return folder / "data.yaml"


def test_more_rows_than_there_are_and_none_at_all(odd):
    code, page = run_show("odd", "-n", "100", file=odd)
    assert code == 0
    assert page.count("─ odd.jsonl, line") == 3
    code, page = run_show("empty", file=odd)
    assert code == 0
    assert "empty has no rows" in page


def test_characters_of_several_tokens_stay_whole_and_a_row_without_response_is_its_prompt(odd):
    code, page = run_show("odd", "-n", "100", *MODEL, "--tokens", file=odd)
    assert code == 0, page
    assert "你|好|🙂|<|im_end|>" in page
    assert "思|考|𠮷|" in page
    assert "答|案|是|四|🙂|<|im_end|>" in page
    assert "0 of them trained on" in page
    assert "�<|im_end|>|\n" in page


def test_an_image_that_is_not_there_is_one_sentence(odd):
    code, page = run_show("image", *MODEL, file=odd)
    assert code == 1
    assert "swift-kd show: error: image.jsonl, line 1 cannot be encoded: " in page
    assert "No such file or directory: 'nowhere.png'" in page
    assert "Traceback" not in page
    assert "A cat." in run_show("image", file=odd)[1]


def test_rows_of_any_length_are_shown(odd):
    """Also longer than the model can read, and without comparing every token with every other."""
    code, page = run_show("huge", *MODEL, file=odd)
    assert code == 0, page[-500:]
    student, teacher = page.split("student: ")[1].split("teacher: ")
    assert "⟦system\nCount slowly. " in teacher
    assert teacher.count("two ") == student.count("two ") == 6000
    assert "«two " in student


def test_weights_of_turns_are_shown(tmp_path):
    turns = [{"role": "user", "content": "say A"}, {"role": "assistant", "content": "1", "weight": 0.5}]
    off = [*turns, turns[0], {"role": "assistant", "content": "2", "weight": 0}]
    write_json_lines(tmp_path / "rows.jsonl", [{"messages": turns}, {"messages": off}])
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"it": {"type": "rows", "source": "rows.jsonl"}}))
    _, text = run_show("it", file=tmp_path / "data.yaml")
    assert text.count("assistant (weight 0.5): ‹1›") == 2
    assert "assistant: 2" in text
    _, tokens = run_show("it", *MODEL, "--enable_thinking", "false", file=tmp_path / "data.yaml")
    assert tokens.count("3 of them trained on (3 with weight 0.5)") == 2
    assert "‹1<|im_end|>\n›" in tokens
    assert "<think>\n\n</think>\n\n2<|im_end|>\n" in tokens
