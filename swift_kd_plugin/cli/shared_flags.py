"""Flags that several subcommands share: what is asked, how an answer is drawn, and the engine."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from swift_kd_plugin.cli.config_file import read_defaults

WHO, HOW, WHAT, ENGINE = "Who writes", "How", "What is asked", "The engine"

BITS_HELP = "8 or 4 of the linear weights as --kd_teacher_bits keeps them, through transformers; needs bitsandbytes."

Config = Annotated[
    Path | None,
    Option(help="A YAML or JSON file with these flags as keys; flags go first.", callback=read_defaults, is_eager=True),
]
Output = Annotated[Path, Option("-o", "--output", help="Folder of the run; started again, an unfinished run goes on.")]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Take the place of another run in the folder, which is moved into replaced-N.")
]

Datasets = Annotated[
    list[str], Option(help="Files, ids, or names of --kd_datasets; several one after the other.", rich_help_panel=WHAT)
]
KdDatasets = Annotated[Path | None, Option("--kd_datasets", help="A data.yaml.", rich_help_panel=WHAT)]
Limit = Annotated[int | None, Option(help="Only the first N rows.", min=1, rich_help_panel=WHAT)]
ThinkingFlag = Annotated[
    Literal["row", "on", "off", "both"],
    Option(help="Mode of the rows: as each says, or set for all; both asks each row twice.", rich_help_panel=WHAT),
]
Strict = Annotated[bool, Option("--strict", help="End at the first row that cannot be used.", rich_help_panel=WHAT)]

EngineName = Annotated[
    Literal["auto", "vllm", "server", "transformers"],
    Option(help="auto: the server, else vLLM if it is installed, else transformers.", rich_help_panel=WHO),
]
TorchDtype = Annotated[Literal["bfloat16", "float16", "float32"] | None, Option("--torch_dtype", rich_help_panel=WHO)]
System = Annotated[
    str | None, Option(help="System prompt of rows that have none; not written to the rows.", rich_help_panel=WHO)
]

MaxNewTokens = Annotated[int, Option("--max_new_tokens", help="Tokens of a response.", rich_help_panel=HOW)]
StopWords = Annotated[
    list[str] | None, Option("--stop_words", help="End a response and are not part of it.", rich_help_panel=HOW)
]
Seed = Annotated[int, Option(help="A response depends on it, its prompt and its number alone.", rich_help_panel=HOW)]

MaxModelLen = Annotated[
    int | None, Option("--max_model_len", help="Tokens of prompt and response.", rich_help_panel=ENGINE)
]
GpuMemoryUtilization = Annotated[
    float | None,
    Option("--gpu_memory_utilization", help="Share of a GPU's memory, 0.9.", min=0, max=1, rich_help_panel=ENGINE),
]
TensorParallelSize = Annotated[int, Option("--tensor_parallel_size", min=1, rich_help_panel=ENGINE)]
MaxNumSeqs = Annotated[
    int,
    Option(
        "--max_num_seqs", help="Responses at a time; requests at a time of a server.", min=1, rich_help_panel=ENGINE
    ),
]
EnforceEager = Annotated[
    bool, Option("--enforce_eager", help="No CUDA graphs; always so without a GPU.", rich_help_panel=ENGINE)
]
TrustRemoteCode = Annotated[
    bool, Option("--trust_remote_code", help="vLLM may run code of the model.", rich_help_panel=ENGINE)
]
ServerTimeout = Annotated[
    float, Option("--server_timeout", help="Seconds that a server may be silent.", rich_help_panel=ENGINE)
]
ShardSize = Annotated[
    int, Option("--shard_size", help="Prompts that are stored at a time.", min=1, rich_help_panel=ENGINE)
]
