"""The best checkpoint of the run that a resumed one goes on from, which ms-swift forgets: a worse one would take its
place, and --save_total_limit delete it."""

from pathlib import Path

from swift.utils import get_logger

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.train.checkpoint_manifest import read_saved_args
from swift_kd_plugin.host.train.training_log import best_step, read_evaluations

logger = get_logger()
# Evaluations with other ones of these cannot be compared.
EVALUATED = ("val_dataset", "split_dataset_ratio", "metric_for_best_model", "kd_divergence", "beta", "kd_temperature")


def remember_best(trainer: HostTrainer) -> None:
    """Takes over the best checkpoint so far, if the run before evaluated the same and it is still there."""
    args, state = trainer.args, trainer.state
    checkpoint = args.mcore_adapter or args.mcore_model
    if not state.iteration or args.finetune or not checkpoint or not args.metric_for_best_model:
        return
    folder, saved = Path(checkpoint).expanduser().absolute().parent, read_saved_args(Path(checkpoint).expanduser())
    figures = {
        step: value
        for step, value in read_evaluations(folder, args.metric_for_best_model.removeprefix("eval_")).items()
        if step <= state.iteration and (folder / f"checkpoint-{step}").is_dir()
    }
    if not figures:
        return
    if other := [name for name in EVALUATED if saved.get(name) != getattr(args, name)]:
        logger.warning(
            f"The best checkpoint of {folder} is not compared with those of this run, as --{other[0]} is another; "
            "--save_total_limit may delete it."
        )
        return
    step = best_step(figures, args.greater_is_better)
    state.best_metric, state.best_global_step = figures[step], step
    state.best_model_checkpoint = str(folder / f"checkpoint-{step}")
    logger.info(
        f"The best checkpoint so far is {state.best_model_checkpoint}, by {args.metric_for_best_model} "
        f"{figures[step]:.6g} of its evaluation."
    )
