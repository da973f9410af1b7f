"""Rows of a data.yaml's thinking_mix as tokens, in both modes and for both sides, beside Qwen3's own chat template."""

from dataclasses import dataclass

import pytest
import yaml

from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from tests.host.thinking_views import IGNORED, text_of, trained
from tests.json_lines import write_json_lines
from tests.tiny_models import make_dense

pytestmark = pytest.mark.usefixtures("cpu_backend")
# Qwen3's chat template, without its tools.
QWEN3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') }}
                {{- '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
END = "<|im_end|>\n"
THOUGHT, ANSWER = "Two and two.\n\nThat is 4.", "The answer is 4."
RESPONSE = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
SYSTEM = {"role": "system", "content": "Add them one by one."}
HISTORY = [
    {"role": "user", "content": "What is 1 plus 1?"},
    {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\nThe answer is 2."},
    {"role": "user", "content": "What is 2 plus 1? /no_think"},
    {"role": "assistant", "content": "<think>\n\n</think>\n\nThe answer is 3."},
]
QUESTION = [{"role": "user", "content": "What is 2 plus 2?"}]


@dataclass(frozen=True)
class Case:
    """Options of a thinking_mix and the modes that they give: whether student and teacher think."""

    options: dict
    student: bool
    teacher: bool
    switch: bool = False

    @property
    def weight(self) -> float:
        """Of the think block in the loss."""
        return 0 if self.student != self.teacher else self.options.get("think_loss", 1)


def case_of(mode: str, teacher: str, **more) -> Case:
    of_teacher = mode if teacher == "same" else teacher
    switch = more.get("switch", False)
    return Case({"mode": mode, "teacher": teacher, **more}, mode == "thinking", of_teacher == "thinking", switch)


CASES = [
    case_of(mode, teacher, **more)
    for mode in ("thinking", "non_thinking")
    for teacher in ("same", "thinking", "non_thinking")
    for more in ({}, {"switch": True}, {"think_loss": 0}, {"think_loss": 0.5})
    if not (more.get("think_loss") and teacher != "same")
]
CASES += [
    Case({}, True, True),
    Case({"mode": "keep", "teacher": "non_thinking"}, True, False),
    Case({"mode_column": "mode"}, False, False),
    Case({"mode_column": "mode", "teacher": "thinking"}, False, True),
    Case({"thinking_share": 1.0}, True, True),
    Case({"thinking_share": 0.0, "teacher": "thinking"}, False, True),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from swift.model import get_processor
    from swift.template import get_template

    folder = make_dense(tmp_path_factory.mktemp("mix") / "model")
    processor = get_processor(str(folder), model_type="qwen3")
    made = get_template(processor, template_type="qwen3", loss_scale="last_round+ignore_empty_think")
    made.set_mode("train")
    made.tokenizer.chat_template = QWEN3
    return made


def build_sample(folder, options, turns, experience="pairs", response="exp"):
    """The sample of one row, through a data.yaml; with the experience from a second file, a column, or not at all."""
    from swift_kd_plugin.host.samples.sample import KDSample

    exp = [SYSTEM, *turns, {"role": "assistant", "content": RESPONSE}]
    rows = {
        "exp": {"id": 1, "messages": exp},
        "noexp": {"id": 1, "mode": "non_thinking", "messages": turns},
        "plain": {"mode": "non_thinking", "experience": SYSTEM["content"], "messages": exp[1:]},
    }
    for name, row in rows.items():
        write_json_lines(folder / f"{name}.jsonl", [row])
    source = {
        "pairs": {"type": "exp_noexp", "exp": "exp.jsonl", "noexp": "noexp.jsonl", "response": response},
        "column": {"type": "exp_noexp", "source": "plain.jsonl", "response": response},
        "none": "plain.jsonl",
    }[experience]
    modes = {"type": "thinking_mix", "source": source, **options}
    (folder / "data.yaml").write_text(yaml.safe_dump({"modes": modes}))
    dataset, _ = Builder(folder / "store").dataset(read_data_yaml(folder / "data.yaml")["modes"])
    (row,) = dataset
    return KDSample.from_row(row)


def encode(sample, template):
    from swift_kd_plugin.host.samples.encode_views import encode_views

    (student,), teacher = encode_views([sample], template)
    return student, student if teacher is None else teacher[0]


def switched(turns, case, thinks):
    if not case.switch:
        return turns
    content = f"{turns[-1]['content']} {'/think' if thinks else '/no_think'}"
    return [*turns[:-1], {**turns[-1], "content": content}]


def rendered(template, messages, **settings):
    return template.tokenizer.apply_chat_template(messages, tokenize=False, **settings)


def ids_of(template, text):
    return template.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("experience", ["pairs", "column", "none"])
@pytest.mark.parametrize("turns", [QUESTION, HISTORY + QUESTION], ids=["one turn", "several turns"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.options))
def test_both_views_are_what_the_chat_template_renders(template, tmp_path, case, turns, experience):
    sample = build_sample(tmp_path, case.options, turns, experience)
    views = encode(sample, template)
    told = [] if experience == "none" else [SYSTEM]
    for view, before, thinks in zip(views, (turns, told + turns), (case.student, case.teacher), strict=True):
        before = switched(before, case, thinks)
        block = f"<think>\n{THOUGHT}\n</think>\n\n" if thinks else ""
        whole = rendered(template, [*before, {"role": "assistant", "content": block + ANSWER}], enable_thinking=thinks)
        prompt = rendered(template, before, enable_thinking=thinks, add_generation_prompt=True)
        assert whole == prompt + block + ANSWER + END
        assert text_of(template, view["input_ids"]) == whole
        assert view["input_ids"] == ids_of(template, whole)
        in_block = ids_of(template, block) if case.weight else []
        assert trained(view) == in_block + ids_of(template, ANSWER + END)
        assert view["labels"][-len(trained(view)) :] == trained(view)
        weights = view.get("loss_scale") or [float(label != IGNORED) for label in view["labels"]]
        expected = [case.weight] * len(in_block) + [1] * len(ids_of(template, ANSWER + END))
        assert weights == [0] * (len(weights) - len(expected)) + expected
    assert trained(views[0]) == trained(views[1])


@pytest.mark.parametrize("mode", ["vllm", "transformers"])
@pytest.mark.parametrize("turns", [QUESTION, HISTORY + QUESTION], ids=["one turn", "several turns"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if "think_loss" not in case.options and case.options], ids=lambda c: str(c.options)
)
def test_a_row_without_response_is_a_generation_prompt(template, tmp_path, case, turns, mode):
    sample = build_sample(tmp_path, case.options, turns, response="none")
    template.set_mode(mode)
    try:
        found = template.encode(sample.to_infer_request())["input_ids"]
    finally:
        template.set_mode("train")
    keeps = (
        case.options.get("mode") == "keep"
    )  # nothing tells the mode of such a row: ms-swift's default is thinking off
    thinks = case.student and not keeps
    before = switched(turns, case, case.student)
    prompt = rendered(template, before, enable_thinking=thinks, add_generation_prompt=True)
    assert text_of(template, found) == prompt
    assert list(found) == ids_of(template, prompt)
