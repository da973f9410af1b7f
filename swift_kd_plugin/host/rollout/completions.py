"""Samples as prompts, and the table of written responses, completions.jsonl, for `--log_completions true`."""

from swift.megatron.trainers.utils import gather_object
from torch import distributed as dist

from swift_kd_plugin.data.rows import without_response
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Prompt, PromptError
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample


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


def log_completions(trainer: HostTrainer, samples: list[KDSample]) -> None:
    """Adds what models wrote in a training step to the trainer's log table, once per sample, when it is encoded."""
    if not trainer.log_completions or not trainer.training:
        return
    rows = []
    if dist.get_rank(trainer._get_rollout_group()) == 0:
        rows = [_row(sample, trainer.template) for sample in samples if sample.written_by != "dataset"]
    for row in gather_object(rows):
        for name, value in row.items():
            trainer._logs[name].append(value)


def _row(sample: KDSample, template) -> dict[str, object]:
    """Prompt and response as the student's tokens."""
    ids, count = sample.encoded["input_ids"], len(sample.written_ids)
    end = template.tokenizer.eos_token_id
    return {
        "prompt": template.safe_decode(ids[: len(ids) - count]),
        "completion": template.safe_decode([token for token in sample.written_ids if token != end]),
        "written_by": sample.written_by,
        "finish_reason": sample.finish_reason,
        "tokens": count,
    }
