"""Samples as prompts, and the table of written responses, completions.jsonl, for `--log_completions true`."""

from swift.megatron.trainers.utils import gather_object
from swift.utils import JsonlWriter
from torch import distributed as dist

from swift_kd_plugin.data.rows import text_of, without_response
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Prompt, PromptError
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample

# Of the log table, beside ms-swift's own: step, prompt and completion.
COLUMNS = ("written_by", "finish_reason", "tokens", "response", "gold", "kd_source", "kd_row", "kd_id")


def as_prompt(sample: KDSample) -> Prompt:
    """What stands in front of the response in the student's view."""
    request = sample.to_infer_request()
    return Prompt(
        messages=without_response(request.messages),
        tools=request.tools,
        images=request.images,
        videos=request.videos,
        audios=request.audios,
        objects=request.objects,
        chat_template_kwargs=request.chat_template_kwargs,
    )


def explain_refusal(samples: list[KDSample], template, limit: int) -> KDError | None:
    """The sentence for the first sample whose prompt fills a colocated engine's context; None if none does."""
    codec = Codec(template, "vllm", limit)
    for sample in samples:
        try:
            codec.encode(as_prompt(sample))
        except PromptError as error:
            return prompt_refusal(sample, error)
    return None


def prompt_refusal(sample: KDSample, error: PromptError) -> KDError:
    """What an engine says of a prompt, with the sample's name and the flags of the trainer."""
    return KDError(f"{sample.name}: {str(error).replace('--max_model_len', '--vllm_max_model_len')}")


def keep_prompts(trainer: HostTrainer, samples: list[KDSample], views: list[dict]) -> None:
    """Keeps the tokens of the student's views for the log; under context parallelism the collator pads its own."""
    if trainer.log_completions:
        for sample, view in zip(samples, views, strict=True):
            sample.encoded = {"input_ids": list(view["input_ids"])}


class CompletionRows:
    """Writes the trainer's log table to completions.jsonl, a row for each completion.

    Args:
        writer: ms-swift's, which would write a table as one row of lists.
    """

    def __init__(self, writer: JsonlWriter):
        self.writer = writer

    def append(self, table: dict[str, list]) -> None:
        columns = {"kd_id": table["kd_id"], "step": [step + 1 for step in table["gen_step"]], **table}
        del columns["gen_step"]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.writer.append(rows)


def log_completions(trainer: HostTrainer, samples: list[KDSample], given: list[KDSample]) -> None:
    """Adds what models wrote in a training step to the trainer's log table, once per sample, when it is encoded.

    Args:
        given: the same samples with the dataset's responses.
    """
    if not trainer.log_completions or not trainer.training:
        return
    rows = []
    if dist.get_rank(trainer._get_rollout_group()) == 0:
        rows = [
            _row(sample, row, trainer.template)
            for sample, row in zip(samples, given, strict=True)
            if sample.written_by != "dataset"
        ]
    for row in gather_object(rows):
        for name, value in row.items():
            trainer._logs[name].append(value)


def _row(sample: KDSample, given: KDSample, template) -> dict[str, object]:
    """Prompt and completion as the student's tokens, beside what the row itself holds."""
    ids, count = sample.encoded["input_ids"], len(sample.written_ids)
    end = template.tokenizer.eos_token_id
    return {
        "prompt": template.safe_decode(ids[: len(ids) - count]),
        "completion": template.safe_decode([token for token in sample.written_ids if token != end]),
        "written_by": sample.written_by,
        "finish_reason": sample.finish_reason,
        "tokens": count,
        "response": "\n".join(text_of(turn["content"]) for turn in given.response_turns) or None,
        "gold": sample.extra.get("gold"),
        "kd_source": sample.extra.get("kd_source"),
        "kd_row": sample.extra.get("kd_row"),
        "kd_id": sample.extra.get("kd_id"),
    }
