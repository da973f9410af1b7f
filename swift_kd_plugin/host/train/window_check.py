"""Sequences longer than a sliding window that Megatron leaves out, which --max_length did not let expect."""

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.sample import KDSample


def check_windows(args, samples: list[KDSample], student: list[dict], teacher: list[dict] | None) -> None:
    """Raises KDError for the first view that is longer than the window of the model that reads it."""
    _check(args, "model", samples, student)
    _check(args, "teacher_model" if args.teacher_model else "model", samples, teacher or student)


def _check(args, flag: str, samples: list[KDSample], views: list[dict]) -> None:
    window = args.kd_windows.get(flag)
    for sample, view in zip(samples, views, strict=True) if window else ():
        if (length := len(view["input_ids"])) > window:
            raise KDError(
                f"{sample.name} has {length:,} tokens, and --{flag} {getattr(args, flag)} has a sliding window of "
                f"{window:,}, which Megatron leaves out; shorten the row, or train on it all the same with "
                "--kd_allow_model_differences true."
            )
