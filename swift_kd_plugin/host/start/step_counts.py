"""How many steps training and evaluation take, counted in rows: ms-swift leaves out what fills no micro-batch."""

from collections.abc import Callable

from swift.utils import get_logger

logger = get_logger()


def set_step_counts(args, stock: Callable, train_dataset, val_dataset) -> None:
    """Sets --train_iters of --num_train_epochs, --eval_iters of the validation rows and --save_steps of an epoch.

    Args:
        stock: `init_iters` of ms-swift, for streams, of which no number of rows is known.
    """
    rows, val_rows = _count(train_dataset), _count(val_dataset)
    if val_rows is not None:
        of_all = -(-val_rows // args.global_batch_size)
        args.eval_iters = of_all if args.eval_iters < 0 else min(args.eval_iters, of_all)
    eval_iters, train_iters = args.eval_iters, args.train_iters
    stock(train_dataset, val_dataset)
    if val_dataset is not None and val_rows != 0:
        args.eval_iters = eval_iters
    if rows is not None:
        if args.save_strategy == "epoch":
            args.save_steps = args.eval_steps = max(rows // args.global_batch_size, 1)
        if args.kd_teacher_cache_mode == "fill":  # once over all rows, whatever they fill
            args.train_iters = -(-rows // args.global_batch_size)
            return
        if args.num_train_epochs is not None:
            args.train_iters = rows * args.num_train_epochs // args.global_batch_size
            if train_iters not in (None, args.train_iters):
                logger.warning(
                    f"--num_train_epochs {args.num_train_epochs} makes {args.train_iters:,} steps, and --train_iters "
                    f"{train_iters} does nothing beside it."
                )
    for line in (_of_training(args, rows), _of_evaluation(args, val_rows)):
        if line:
            logger.info(line)


def _count(dataset) -> int | None:
    """None of a stream."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def _of_training(args, rows: int | None) -> str | None:
    """How often each row is used, and what the last epoch leaves out."""
    if not rows or not args.train_iters:
        return None
    taken = args.train_iters * args.global_batch_size
    times, more = divmod(taken, rows)
    often = f"{times} times" if not more else f"{times} or {times + 1} times"
    line = f"{args.train_iters:,} steps of {args.global_batch_size:,} rows use each of the {rows:,} rows {often}"
    return f"{line}; the last epoch leaves {rows - more:,} of them out." if more else f"{line}."


def _of_evaluation(args, rows: int | None) -> str | None:
    taken = args.eval_iters * args.global_batch_size
    if not rows or taken <= 0:
        return None
    if taken < rows:
        return (
            f"--eval_iters {args.eval_iters}: every evaluation takes the first {taken:,} of {rows:,} validation rows."
        )
    return f"Every evaluation takes each of the {rows:,} validation rows once."
