"""`swift-kd generate`: a teacher writes the responses of a dataset, and what is good enough becomes a dataset."""

from typing import Annotated, Any, Literal

import typer
from typer import Option

from swift_kd_plugin.cli import shared_flags
from swift_kd_plugin.cli.reporting import Quiet, errors_in_one_sentence, open_id, print_report
from swift_kd_plugin.errors import KDError

WHO, HOW, WHICH = shared_flags.WHO, shared_flags.HOW, "Which responses are kept"


def generate(
    model: Annotated[
        str, Option(help="The teacher: a folder or id. With --server, whose tokenizer.", rich_help_panel=WHO)
    ],
    dataset: shared_flags.Datasets,
    output: shared_flags.Output,
    config: shared_flags.Config = None,
    kd_datasets: shared_flags.KdDatasets = None,
    adapters: Annotated[list[str] | None, Option(help="A LoRA adapter's folder.", rich_help_panel=WHO)] = None,
    server: Annotated[
        str | None,
        Option(help="Address of swift deploy or vllm serve; key: SWIFT_KD_TEACHER_API_KEY.", rich_help_panel=WHO),
    ] = None,
    server_adapter: Annotated[
        str | None, Option("--server_adapter", help="Name of an adapter of vllm serve.", rich_help_panel=WHO)
    ] = None,
    engine: shared_flags.EngineName = "auto",
    template: Annotated[
        str | None, Option(help="ms-swift's template; the model's by default.", rich_help_panel=WHO)
    ] = None,
    model_type: Annotated[
        str | None, Option("--model_type", help="ms-swift's, if the folder does not tell.", rich_help_panel=WHO)
    ] = None,
    bits: Annotated[int | None, Option(help=shared_flags.BITS_HELP, rich_help_panel=WHO)] = None,
    torch_dtype: shared_flags.TorchDtype = None,
    system: shared_flags.System = None,
    limit: shared_flags.Limit = None,
    thinking: shared_flags.ThinkingFlag = "row",
    strict: shared_flags.Strict = False,
    n: Annotated[int, Option("--n", help="Samples of each prompt.", min=1, rich_help_panel=HOW)] = 1,
    temperature: Annotated[
        float | None, Option(help="As the model's generation config, else 1.", rich_help_panel=HOW)
    ] = None,
    top_p: Annotated[float | None, Option("--top_p", help="Likewise, else 1.", rich_help_panel=HOW)] = None,
    top_k: Annotated[int | None, Option("--top_k", help="Likewise, else off (0).", rich_help_panel=HOW)] = None,
    min_p: Annotated[float | None, Option("--min_p", help="Likewise, else 0.", rich_help_panel=HOW)] = None,
    repetition_penalty: Annotated[
        float | None, Option("--repetition_penalty", help="Likewise, else 1.", rich_help_panel=HOW)
    ] = None,
    max_new_tokens: shared_flags.MaxNewTokens = 2048,
    stop_words: shared_flags.StopWords = None,
    seed: shared_flags.Seed = 42,
    quota: Annotated[
        list[str] | None,
        Option(
            help="Most rows: N, thinking=N, non_thinking=N, COLUMN=N (of each value), COLUMN:VALUE=N.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    finish: Annotated[
        Literal["stop", "any"], Option(help="any keeps responses that were cut off, too.", rich_help_panel=WHICH)
    ] = "stop",
    min_length: Annotated[
        int | None, Option("--min_length", help="Tokens of a response.", rich_help_panel=WHICH)
    ] = None,
    max_length: Annotated[
        int | None, Option("--max_length", help="Tokens of a response.", rich_help_panel=WHICH)
    ] = None,
    max_repetition: Annotated[
        float | None,
        Option("--max_repetition", help="Share of 4-grams of words that stood before, 0 to 1.", rich_help_panel=WHICH),
    ] = None,
    language: Annotated[
        str | None,
        Option(
            help="zh, ja, ko, en, ru, el, ar, he, hi, th: half of the answer's letters at least are of its script "
            "(so en means Latin letters); an answer without letters passes.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        Option(
            help="exact, numeric or regex against the gold answer, or module:function(row, response) -> bool or score.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    gold: Annotated[
        str | None,
        Option(help="Column with the gold answer; the dataset's response by default.", rich_help_panel=WHICH),
    ] = None,
    pattern: Annotated[
        str | None,
        Option(
            help="Of regex: finds the answer (group 1); without it the gold answer is the pattern.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    min_score: Annotated[
        float, Option("--min_score", help="A verifier's score that passes.", rich_help_panel=WHICH)
    ] = 0.5,
    verifier_errors: Annotated[
        Literal["stop", "reject"],
        Option("--verifier_errors", help="What a verifier that raises does.", rich_help_panel=WHICH),
    ] = "stop",
    select: Annotated[
        Literal["all", "first_pass", "best", "majority"],
        Option(
            help="Of a prompt's samples that pass: all, the first, the best, or the most frequent answer.",
            rich_help_panel=WHICH,
        ),
    ] = "all",
    vote: Annotated[
        Literal["exact", "numeric", "regex"] | None,
        Option(help="How majority reads an answer; as a built-in verifier, else exact.", rich_help_panel=WHICH),
    ] = None,
    dedup: Annotated[
        bool, Option("--dedup", help="Leave out rows that are equal to an earlier one.", rich_help_panel=WHICH)
    ] = False,
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
    """Writes responses.jsonl, a dataset of ms-swift, and a report. A killed run goes on when it is started again."""
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("config", "quiet")}
    with errors_in_one_sentence("generate"):
        from swift_kd_plugin.generation.run_generate import Options, generate_rows
        from swift_kd_plugin.generation.shard_store import PAGE, RESPONSES

        report = generate_rows(Options(**flags), open_id)
        print_report(report.input, quiet)
        for line in report.lines(quiet):
            typer.echo(line, err=True)
        if not report.accepted:
            raise KDError(
                f"no response was accepted, and {output}/{RESPONSES} is not written; {PAGE} shows the reasons."
            )
