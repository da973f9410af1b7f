"""`swift-kd score`: a teacher cache is filled before a student is there."""

from pathlib import Path
from typing import Annotated

import typer

from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.recipes.inputs import provide_inputs
from swift_kd_plugin.recipes.plan import has_stages, plain_keys
from swift_kd_plugin.recipes.process import run_process
from swift_kd_plugin.recipes.shell_command import megatron_command
from swift_kd_plugin.recipes.source import read_recipe

# What a file says of a student that writes, learns or is saved has no meaning for a teacher that scores.
LEFT_OUT = (
    *("kd_lmbda_final", "kd_student_engine", "kd_teacher_engine", "kd_seq_kd_prob", "kd_teacher_temperature"),
    *("kd_teacher_gpu_memory_utilization", "kd_thinking_prob", "kd_truncated", "tuner_type", "adapters", "train_iters"),
    *("vllm_mode", "mcore_model", "mcore_adapter", "add_version"),
)
LOGS = "score"  # in the cache: what a training writes into output_dir is none of its own
SET = ("kd_teacher_cache_mode=fill", "lmbda=0", "use_vllm=false", "seq_kd=false", "num_train_epochs=1")
OF_A_TEACHER = (*(f"{name}=null" for name in LEFT_OUT), *SET)


def score(
    file: Annotated[Path, typer.Argument(help="The YAML or JSON file of a training run, with kd_teacher_cache.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Win over the file: kd_teacher_cache=cache.")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", envvar="TINY", help="As in `swift-kd train`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Print the command and stop.")] = False,
) -> None:
    """Lets the teacher of a training run score all its rows into --kd_teacher_cache, without a student.

    It runs in the layout that the file or the overrides say, which may be another
    than the training's, and takes up a cache that is partly filled. Rows that are
    held out for evaluation are scored, too. Its log lies in the cache, in `score`.
    """
    with errors_in_one_sentence("score"):
        recipe = read_recipe(file, [*(overrides or []), *OF_A_TEACHER], tiny)
        if has_stages(recipe):
            raise KDError(
                f"{file} has stages, and a teacher scores the rows of one run; write the flags of a stage into a file "
                "of its own, with the responses that it reads as its dataset."
            )
        if not recipe.config.get("kd_teacher_cache"):
            raise KDError(
                f"{file} has no kd_teacher_cache, the folder to fill; add it, or give kd_teacher_cache=FOLDER."
            )
        keys = plain_keys(recipe, megatron_flags())
        keys["output_dir"] = str(Path(keys["kd_teacher_cache"]) / LOGS)
        if not dry_run:
            provide_inputs(keys, recipe.origin, recipe.file, lambda line: typer.echo(line, err=True))
        command = megatron_command(keys)
        typer.echo(command.shell())
        code = 0 if dry_run else run_process(command)
    raise typer.Exit(code)
