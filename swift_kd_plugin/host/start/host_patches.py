"""The ledger of the host's patched symbols: one function each, with why it is there and when it can be deleted."""

from argparse import Namespace
from contextlib import contextmanager
from functools import wraps
from types import ModuleType

from swift_kd_plugin.errors import NAME, stop
from swift_kd_plugin.ledger import Ledger, Patch, Undo, replace_attribute


def resolve_bare_name(module: ModuleType) -> Undo:
    stock = module.import_external_file

    @wraps(stock)
    def import_external_file(file_path: str):
        if file_path != NAME:
            return stock(file_path)
        import swift_kd_plugin

        swift_kd_plugin.install()
        # Spawned dataloader workers replay this list.
        if NAME not in module._external_files:
            module._external_files.append(NAME)
        return swift_kd_plugin

    return replace_attribute(module, "import_external_file", import_external_file)


def add_kd_flags(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.start.argument_class import extend_arguments

    return replace_attribute(module, "MegatronRLHFArguments", extend_arguments(module.MegatronRLHFArguments))


def install_trainer(module: ModuleType) -> Undo:
    import swift.megatron.trainers as trainers

    from swift_kd_plugin.host.train.trainer import KDTrainer

    return replace_attribute(trainers, "MegatronGKDTrainer", KDTrainer)


def say_wrong_flags_in_one_sentence(module: ModuleType) -> Undo:
    def error(self, message: str):
        stop(f"{message}; see `megatron rlhf --help`.")

    return replace_attribute(module.HfArgumentParser, "error", error)


def keep_teacher_columns(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.rows.datasets import ID_COLUMN, ROW_COLUMN, SOURCE_COLUMN, TEACHER_COLUMNS

    keys = [*module.RowPreprocessor.standard_keys, *TEACHER_COLUMNS, SOURCE_COLUMN, ROW_COLUMN, ID_COLUMN]
    return replace_attribute(module.RowPreprocessor, "standard_keys", keys)


def treat_teacher_tools_as_tools(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.rows.datasets import TEACHER_TOOLS

    return replace_attribute(module, "TOOL_KEYS", (*module.TOOL_KEYS, TEACHER_TOOLS))


def fix_types_of_teacher_columns(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.rows.datasets import TEACHER_COLUMN, TEACHER_KWARGS, TEACHER_THOUGHT, THINK_LOSS

    stock = module.RowPreprocessor._patch_arrow_writer

    @contextmanager
    def _patch_arrow_writer(self):
        from datasets.arrow_writer import ArrowWriter
        from datasets.features import Json, List, Value

        types = {TEACHER_COLUMN: List(Json()), TEACHER_KWARGS: Json()}
        types |= {TEACHER_THOUGHT: Value("string"), THINK_LOSS: Value("float64")}
        with stock(self):
            stock_init = ArrowWriter.__init__

            def with_types(writer, schema=None, features=None, *args, **kwargs):
                if features is not None:
                    features.update({column: types[column] for column in types if column in features})
                stock_init(writer, schema, features, *args, **kwargs)

            ArrowWriter.__init__ = with_types
            yield

    return replace_attribute(module.RowPreprocessor, "_patch_arrow_writer", _patch_arrow_writer)


def number_rows(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.rows.datasets import add_row_numbers

    stock = module.RowPreprocessor.__call__

    @wraps(stock)
    def __call__(self, dataset, **kwargs):
        return stock(self, add_row_numbers(dataset), **kwargs)

    return replace_attribute(module.RowPreprocessor, "__call__", __call__)


def separate_row_cache(module: ModuleType) -> Undo:
    version = module.RowPreprocessor.cache_format_version
    return replace_attribute(module.RowPreprocessor, "cache_format_version", f"{version}-{NAME}")


def check_teacher_data(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.rows.datasets import check_teacher_columns

    stock = module.RowPreprocessor._check_messages

    def _check_messages(row):
        stock(row)
        check_teacher_columns(row)

    return replace_attribute(module.RowPreprocessor, "_check_messages", staticmethod(_check_messages))


def name_bad_rows(module: ModuleType) -> Undo:
    from swift_kd_plugin.host.rows.datasets import preprocess_or_name_the_row

    stock = module.RowPreprocessor.batched_preprocess
    automatic = (module.MessagesPreprocessor, module.AlpacaPreprocessor, module.ResponsePreprocessor)

    @wraps(stock)
    def batched_preprocess(self, batched_row, *, strict, ignore_max_length_error):
        bound = stock.__get__(self)
        if not strict:
            return bound(batched_row, strict=strict, ignore_max_length_error=ignore_max_length_error)
        return preprocess_or_name_the_row(
            bound, batched_row, type(self) not in automatic, ignore_max_length_error=ignore_max_length_error
        )

    return replace_attribute(module.RowPreprocessor, "batched_preprocess", batched_preprocess)


def leave_name_out_of_checkpoints(module: ModuleType) -> Undo:
    stock = module.BaseArguments.save_args

    @wraps(stock)
    def save_args(self, output_dir=None):
        given = {name: getattr(self, name) for name in PLUGIN_LISTS}
        vars(self).update({name: [plugin for plugin in given[name] if plugin != NAME] for name in PLUGIN_LISTS})
        try:
            stock(self, output_dir)
        finally:
            vars(self).update(given)

    return replace_attribute(module.BaseArguments, "save_args", save_args)


def mark_vocabulary_shards(module: ModuleType) -> Undo:
    stock = module._ensure_fsdp_tensor_parallel_attributes

    @wraps(stock)
    def ensure(args, model):
        if getattr(args, "kd_grad_norm", "stock") == "exact":
            args = Namespace(**{**vars(args), "use_megatron_fsdp": True})
        stock(args, model)

    return replace_attribute(module, "_ensure_fsdp_tensor_parallel_attributes", ensure)


ARGUMENTS = "swift.arguments.base_args.base_args"
PLUGIN_LISTS = ("external_plugins", "custom_register_path")
ROWS = "swift.dataset.preprocessor.core"
LEDGER = Ledger(
    [
        Patch(
            symbol="swift.utils.utils.import_external_file",
            module="swift.utils.utils",
            why="it takes a path to a .py file; `--external_plugins swift_kd_plugin` is the name of a package",
            remove_when="ms-swift imports a bare name given to --external_plugins as a module",
            apply=resolve_bare_name,
        ),
        Patch(
            symbol="swift.megatron.arguments.rlhf_args.MegatronRLHFArguments",
            module="swift.megatron.arguments.rlhf_args",
            why="plugins are loaded after the command line is parsed, so they cannot add flags",
            remove_when="ms-swift lets a plugin extend its argument classes",
            apply=add_kd_flags,
        ),
        Patch(
            symbol="swift.megatron.trainers.MegatronGKDTrainer",
            module="swift.megatron.pipelines.train.rlhf",
            why="the pipeline looks its trainer up here by name and has no registry for trainers",
            remove_when="ms-swift has a trainer registry for Megatron",
            apply=install_trainer,
        ),
        Patch(
            symbol=f"{ARGUMENTS}.BaseArguments.save_args",
            module=ARGUMENTS,
            why="`swift infer`, `deploy` and `export` take what a checkpoint's args.json names for a path, and need no "
            "plugin to open it",
            remove_when="ms-swift imports a bare name given to --external_plugins as a module, or saves none",
            apply=leave_name_out_of_checkpoints,
        ),
        Patch(
            symbol="transformers.hf_argparser.HfArgumentParser.error",
            module="transformers.hf_argparser",
            why="argparse prints the usage of some 700 flags before it says which one is wrong",
            remove_when="ms-swift reports a wrong flag without the usage",
            apply=say_wrong_flags_in_one_sentence,
        ),
        Patch(
            symbol=f"{ROWS}.RowPreprocessor.standard_keys",
            module=ROWS,
            why="a column that is not listed is removed, in a stream always; the teacher's and a row's place are not",
            remove_when="ms-swift keeps the teacher's columns, and a number or id of each row",
            apply=keep_teacher_columns,
        ),
        Patch(
            symbol=f"{ROWS}.TOOL_KEYS",
            module=ROWS,
            why="tools are read from JSON text and stored as JSON so that each keeps its schema; so is teacher_tools",
            remove_when="ms-swift knows teacher_tools",
            apply=treat_teacher_tools_as_tools,
        ),
        Patch(
            symbol=f"{ROWS}.RowPreprocessor._patch_arrow_writer",
            module=ROWS,
            why="messages and chat_template_kwargs are stored as JSON so that each keeps its own fields; the teacher's "
            "need the same, and its other columns one type in all datasets",
            remove_when="ms-swift stores the teacher's columns with these types",
            apply=fix_types_of_teacher_columns,
        ),
        Patch(
            symbol=f"{ROWS}.RowPreprocessor.__call__",
            module=ROWS,
            why="ms-swift keeps a row's dataset but not its number, so errors in training could not name the row",
            remove_when="ms-swift keeps the number of a row",
            apply=number_rows,
        ),
        Patch(
            symbol=f"{ROWS}.RowPreprocessor.cache_format_version",
            module=ROWS,
            why="rows cached by stock ms-swift lack row numbers, the types of the teacher's columns and dropped rows",
            remove_when="the other patches of RowPreprocessor are gone",
            apply=separate_row_cache,
        ),
        Patch(
            symbol=f"{ROWS}.RowPreprocessor._check_messages",
            module=ROWS,
            why="the teacher's columns are checked like those of the student",
            remove_when="ms-swift checks the teacher's columns",
            apply=check_teacher_data,
        ),
        Patch(
            symbol=f"{ROWS}.RowPreprocessor.batched_preprocess",
            module=ROWS,
            why="a refused row is dropped, or raised without saying which row it was",
            remove_when="ms-swift names the row in strict mode and counts rows without messages as refused",
            apply=name_bad_rows,
        ),
        Patch(
            symbol="swift.megatron.utils.megatron_lm_utils._ensure_fsdp_tensor_parallel_attributes",
            module="swift.megatron.utils.megatron_lm_utils",
            why="without FSDP the vocabulary shards are not marked tensor-parallel when weights are loaded, so the "
            "gradient norm under TP leaves most of them out; used with --kd_grad_norm exact only",
            remove_when="ms-swift marks the shards of embedding and output layer without FSDP too",
            apply=mark_vocabulary_shards,
        ),
    ]
)
