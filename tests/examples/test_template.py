"""The quickstart's template renders, token by token, what the model's own chat template renders."""

import pytest

from examples.quickstart.code_book import Question, prompt
from examples.quickstart.evaluate import load_checkpoint
from tests.examples.recipes import commands_of, flags_of
from tests.paths import BASE_MODEL

BOOK = {"A": 7, "B": 5}
RESPONSE = "7557"
IGNORED = -100


@pytest.fixture(scope="module", params=["off_policy", "on_policy"])
def template(request):
    from swift.model import get_processor
    from swift.template import get_template

    command = commands_of("quickstart/run.yaml", tiny=True)[request.param]
    flags = {name: value for name, (value, *_) in flags_of(list(command.argv[2:])).items()}
    processor = get_processor(str(BASE_MODEL), model_type=flags["--model_type"])
    # The loss scale is Megatron-SWIFT's default for this template.
    return get_template(
        processor,
        template_type=flags["--template"],
        enable_thinking=flags["--enable_thinking"] == "true",
        max_length=int(flags["--max_length"]),
        loss_scale="last_round+ignore_empty_think",
    )


@pytest.mark.parametrize("book", [None, BOOK], ids=["student", "teacher"])
def test_tokens_and_labels(template, book):
    _, tokenizer = load_checkpoint(BASE_MODEL)
    messages = prompt(Question("say", "ABBA"), book)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    prompt_ids = tokenizer(text)["input_ids"]
    response_ids = tokenizer(f"{RESPONSE}<|im_end|>\n")["input_ids"]

    template.set_mode("train")
    trained = template.encode({"messages": [*messages, {"role": "assistant", "content": RESPONSE}]})
    assert trained["input_ids"] == prompt_ids + response_ids
    assert trained["labels"] == [IGNORED] * len(prompt_ids) + response_ids

    template.set_mode("vllm")
    assert template.encode({"messages": messages})["input_ids"] == prompt_ids
