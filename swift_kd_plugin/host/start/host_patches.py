"""The ledger of the host's patched symbols: one function each, with why it is there and when it can be deleted."""

from argparse import Namespace
from functools import wraps
from types import ModuleType

from swift_kd_plugin.errors import HELP, NAME, stop
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

    from swift_kd_plugin.host.train import base_trainer, score_trainer, stock_trainer, trainer  # noqa: F401

    return replace_attribute(trainers, "MegatronGKDTrainer", base_trainer.BaseTrainer)


def say_wrong_flags_in_one_sentence(module: ModuleType) -> Undo:
    def error(self, message: str):
        stop(f"{message}; see `{HELP}`.")

    return replace_attribute(module.HfArgumentParser, "error", error)


def keep_columns(module: ModuleType) -> Undo:
    from swift_kd_plugin.data.columns import COLUMNS

    stock = module.RowPreprocessor.standard_keys
    keys = [*stock, *(name for name in COLUMNS if name not in (*stock, "columns"))]
    return replace_attribute(module.RowPreprocessor, "standard_keys", keys)


def read_files_for_preprocessors(module: ModuleType) -> Undo:
    stock = module.DatasetLoader.load

    @wraps(stock)
    def load(self, dataset_syntax=None, dataset_meta=None, *, use_hf=None):
        from swift_kd_plugin.host.rows.row_loader import load_for_script, makes_rows

        if type(self) is module.DatasetLoader and makes_rows(dataset_meta):
            return load_for_script(self, dataset_syntax, dataset_meta, use_hf=use_hf)
        return stock(self, dataset_syntax, dataset_meta, use_hf=use_hf)

    return replace_attribute(module.DatasetLoader, "load", load)


def leave_name_out_of_checkpoints(module: ModuleType) -> Undo:
    stock = module.BaseArguments.save_args

    @wraps(stock)
    def save_args(self, output_dir=None):
        plugins = {name: getattr(self, name) for name in PLUGIN_LISTS}
        vars(self).update({name: [plugin for plugin in plugins[name] if plugin != NAME] for name in PLUGIN_LISTS})
        try:
            stock(self, output_dir)
        finally:
            vars(self).update(plugins)

    return replace_attribute(module.BaseArguments, "save_args", save_args)


def mark_vocabulary_shards(module: ModuleType) -> Undo:
    stock = module._ensure_fsdp_tensor_parallel_attributes

    @wraps(stock)
    def ensure(args, model):
        if getattr(args, "kd_grad_norm", "stock") == "exact":
            args = Namespace(**{**vars(args), "use_megatron_fsdp": True})
        stock(args, model)

    return replace_attribute(module, "_ensure_fsdp_tensor_parallel_attributes", ensure)


def check_that_rows_can_be_encoded(module: ModuleType) -> Undo:
    from swift_kd_plugin.generation.tool_text import write_tools_as_the_model
    from swift_kd_plugin.host.rows.encoding_check import check_datasets
    from swift_kd_plugin.host.rows.named_datasets import add_reports
    from swift_kd_plugin.host.rows.teacher_lengths import say_long_teacher_views

    stock = module.MegatronRLHF._get_dataset

    @wraps(stock)
    def _get_dataset(self):
        datasets = stock(self)
        if self.args.rlhf_type != "gkd":
            return datasets
        write_tools_as_the_model(self.template)
        datasets, reports = check_datasets(self.args, self.template, datasets)
        add_reports(self.args.row_reports, reports, self.args.output_dir)
        say_long_teacher_views(self.args, self.template, datasets)
        return datasets

    return replace_attribute(module.MegatronRLHF, "_get_dataset", _get_dataset)


BASE_ARGUMENTS = "swift.arguments.base_args.base_args"
PLUGIN_LISTS = ("external_plugins", "custom_register_path")
PREPROCESSORS = "swift.dataset.preprocessor.core"
HOST_LEDGER = Ledger(
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
            symbol="swift.megatron.pipelines.train.rlhf.MegatronRLHF._get_dataset",
            module="swift.megatron.pipelines.train.rlhf",
            why="a row is encoded when its step is made, and where that fails, of whatever cause, another row is used",
            remove_when="ms-swift leaves such rows out before training, and says which",
            apply=check_that_rows_can_be_encoded,
        ),
        Patch(
            symbol=f"{BASE_ARGUMENTS}.BaseArguments.save_args",
            module=BASE_ARGUMENTS,
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
            symbol=f"{PREPROCESSORS}.RowPreprocessor.standard_keys",
            module=PREPROCESSORS,
            why="what a user's preprocessor makes of a column that is not listed is removed; the teacher's are not",
            remove_when="ms-swift keeps the teacher's columns, and a number or id of each row",
            apply=keep_columns,
        ),
        Patch(
            symbol="swift.dataset.loader.DatasetLoader.load",
            module="swift.dataset.loader",
            why="outside of a run, columns that a preprocessor of the plugin keeps are removed behind it, and "
            "`datasets` has changed texts in columns of mixed types before it",
            remove_when="ms-swift lets a preprocessor read a file and say which columns stay",
            apply=read_files_for_preprocessors,
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
