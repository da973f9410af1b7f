"""`swift-kd eval`: how good models are on held-out questions, with and without the experience in view."""

from typing import Annotated, Any, Literal

import typer
from typer import Option

from swift_kd_plugin.cli import shared_flags
from swift_kd_plugin.cli.reporting import Quiet, errors_in_one_sentence, open_id, print_report

WHO, HOW, WHAT, MEASURED = shared_flags.WHO, shared_flags.HOW, shared_flags.WHAT, "What is measured"


def evaluate(
    model: Annotated[
        list[str],
        Option(help="NAME=FOLDER or an id; several are compared. Without NAME the folder's name.", rich_help_panel=WHO),
    ],
    dataset: shared_flags.Datasets,
    output: shared_flags.Output,
    config: shared_flags.Config = None,
    kd_datasets: shared_flags.KdDatasets = None,
    adapters: Annotated[
        list[str] | None,
        Option(
            help="NAME=FOLDER of a LoRA adapter. Here and in the next five: without NAME for all.",
            rich_help_panel=WHO,
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        Option(
            help="NAME=URL of swift deploy or vllm serve; key: SWIFT_KD_TEACHER_API_KEY.",
            rich_help_panel=WHO,
        ),
    ] = None,
    server_adapter: Annotated[
        list[str] | None, Option("--server_adapter", help="NAME=an adapter of vllm serve.", rich_help_panel=WHO)
    ] = None,
    template: Annotated[
        list[str] | None, Option(help="NAME=ms-swift's template; the model's by default.", rich_help_panel=WHO)
    ] = None,
    model_type: Annotated[
        list[str] | None,
        Option("--model_type", help="NAME=ms-swift's, if the folder does not tell.", rich_help_panel=WHO),
    ] = None,
    bits: Annotated[
        list[str] | None,
        Option(help=f"NAME=BITS, {shared_flags.BITS_HELP}", rich_help_panel=WHO),
    ] = None,
    engine: shared_flags.EngineName = "auto",
    torch_dtype: shared_flags.TorchDtype = None,
    system: shared_flags.System = None,
    view: Annotated[
        list[str] | None,
        Option(
            help="without (the student's view) or with the experience (the teacher's); what the rows have by default.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    thinking: shared_flags.ThinkingFlag = "row",
    limit: shared_flags.Limit = None,
    strict: shared_flags.Strict = False,
    metric: Annotated[
        list[str],
        Option(
            help="exact, numeric, regex, bleu, rouge, ppl, or module:function(row, response) -> bool or score.",
            rich_help_panel=MEASURED,
        ),
    ] = ["exact"],  # noqa: B006 (typer copies it)
    gold: Annotated[
        str | None,
        Option(help="Column with the gold answer, else the dataset's response.", rich_help_panel=MEASURED),
    ] = None,
    pattern: Annotated[
        str | None,
        Option(
            help="Of regex: finds the answer (group 1); without it the gold answer is the pattern.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    text_language: Annotated[
        Literal["auto", "en", "zh", "ja", "ko"],
        Option(
            "--text_language", help="How BLEU cuts texts; auto: as the gold answers tell.", rich_help_panel=MEASURED
        ),
    ] = "auto",
    tag_column: Annotated[
        str | None, Option("--tag_column", help="Figures for each value of this column, too.", rich_help_panel=MEASURED)
    ] = None,
    samples: Annotated[
        int,
        Option(help="Rows shown side by side, first those on which models disagree.", min=0, rich_help_panel=MEASURED),
    ] = 8,
    max_new_tokens: shared_flags.MaxNewTokens = 2048,
    temperature: Annotated[float, Option(help="0 takes the most probable token.", rich_help_panel=HOW)] = 0.0,
    top_p: Annotated[float, Option("--top_p", rich_help_panel=HOW)] = 1.0,
    top_k: Annotated[int, Option("--top_k", help="0 is off.", rich_help_panel=HOW)] = 0,
    stop_words: shared_flags.StopWords = None,
    seed: shared_flags.Seed = 42,
    max_model_len: shared_flags.MaxModelLen = None,
    gpu_memory_utilization: shared_flags.GpuMemoryUtilization = None,
    tensor_parallel_size: shared_flags.TensorParallelSize = 1,
    max_num_seqs: shared_flags.MaxNumSeqs = 256,
    enforce_eager: shared_flags.EnforceEager = False,
    trust_remote_code: shared_flags.TrustRemoteCode = False,
    server_timeout: shared_flags.ServerTimeout = 600,
    shard_size: shared_flags.ShardSize = 256,
    overwrite: shared_flags.Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compares models on a dataset: report.md, report.json, report.csv and answers.jsonl. A killed run goes on."""
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("config", "quiet")}
    with errors_in_one_sentence("eval"):
        from swift_kd_plugin.evaluation.run_eval import run_evaluation
        from swift_kd_plugin.generation.model_setup import ModelOptions

        table, notes = run_evaluation(ModelOptions(**flags), open_id)
        print_report(notes, quiet)
        typer.echo(table)
        typer.echo(f"{output} has report.md with samples, report.json, report.csv and answers.jsonl", err=True)
