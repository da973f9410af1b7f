"""A question and its responses with and without thought, as samples and as the tokens of both views."""

IGNORED = -100
THOUGHT = "<think>\nTwo and two.\n</think>\n\nThe answer is 4."
BARE = "The answer is 4."
# Qwen3's rules: the last assistant turn always has a think block, empty if its text has none; a non-thinking generation
# prompt ends with the empty block.
CHAT_TEMPLATE = (
    "{%- for m in messages %}{%- set c = m.content %}"
    "{%- if m.role == 'assistant' %}{%- set thought = '' %}"
    "{%- if '</think>' in c %}"
    "{%- set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.last %}{%- set c = '<think>\n' + thought + '\n</think>\n\n' + c %}{%- endif %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
QUESTION = [{"role": "user", "content": "What is 2 plus 2?"}]
HINTED = [
    {"role": "system", "content": "Add them."},
    {"role": "user", "content": "What is 1 plus 1?"},
    {"role": "assistant", "content": "The answer is 2."},
    *QUESTION,
]
OWN_BLOCK, EMPTY = "<think>\nTwo and two.\n</think>\n\n", "<think>\n\n</think>\n\n"
OTHER = "One more than three."
END = "<|im_end|>\n"
STOP = "<|im_end|>"


def trained(view):
    return [label for label in view["labels"] if label != IGNORED]


def rendered(template, messages, thinking):
    text = template.tokenizer.apply_chat_template(messages, enable_thinking=thinking, tokenize=False)
    return template.tokenizer(text, add_special_tokens=False)["input_ids"]


def text_of(template, ids):
    return template.tokenizer.decode(ids)


def make_sample(response, before=QUESTION, **columns):
    from swift_kd_plugin.host.samples.sample import KDSample

    return KDSample.from_row({"messages": [*before, {"role": "assistant", "content": response}], **columns})


def encode(template, *samples):
    from swift_kd_plugin.host.samples.encode_views import encode_views

    return encode_views(list(samples), template)


def tokens(template, text):
    return template.tokenizer(text, add_special_tokens=False)["input_ids"]


def weights(view):
    """Of the trained tokens, in order."""
    return [weight for weight, label in zip(view["loss_scale"], view["labels"], strict=True) if label != IGNORED]


def prompt(template, thinking):
    return template.tokenizer.apply_chat_template(
        QUESTION, enable_thinking=thinking, tokenize=False, add_generation_prompt=True
    )
