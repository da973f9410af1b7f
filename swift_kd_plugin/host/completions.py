"""Samples as prompts, and the table of written responses, completions.jsonl, for `--log_completions true`."""

from swift.megatron.trainers.utils import gather_object
from torch import distributed as dist

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Prompt, PromptError
from swift_kd_plugin.host.sample import KDSample


def as_prompt(sample: KDSample) -> Prompt:
    """What stands in front of the response in the student's view."""
    request = sample.to_infer_request()
    return Prompt(
        messages=request.messages[:-1] if sample.has_response else request.messages,
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
            return refusal(sample, error)
    return None


def refusal(sample: KDSample, error: PromptError) -> KDError:
    """What an engine says of a prompt, with the sample's name and the flags of the trainer."""
    return KDError(f"{sample.name} is {str(error).replace('--max_model_len', '--vllm_max_model_len')}")


def log_completions(trainer, samples: list[KDSample]) -> None:
    """Adds what models wrote in a training step to the trainer's log table, once per sample."""
    if not trainer.log_completions or not trainer.unwrapped_models[0].training:
        return
    rows = []
    if dist.get_rank(trainer._get_rollout_group()) == 0:
        codec = Codec(trainer.template, "vllm")
        rows = [_row(sample, codec) for sample in samples if sample.written_by != "dataset"]
    for row in gather_object(rows):
        for name, value in row.items():
            trainer._logs[name].append(value)


def _row(sample: KDSample, codec: Codec) -> dict[str, object]:
    return {
        "prompt": codec.template.safe_decode(codec.encode(as_prompt(sample))["input_ids"]),
        "completion": codec.text(sample.written_ids),
        "written_by": sample.written_by,
        "finish_reason": sample.finish_reason,
        "tokens": len(sample.written_ids),
    }
