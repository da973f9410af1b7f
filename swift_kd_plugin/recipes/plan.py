"""The stages of a recipe: which there are, in which order, with which keys, and what each takes from another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from swift_kd_plugin.config.mapping_files import resolve
from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.flag_checks import check_flags
from swift_kd_plugin.recipes.shell_command import LAUNCH_KEYS, check_keys
from swift_kd_plugin.recipes.source import Recipe

GENERATE, OFF_POLICY, ON_POLICY = STAGE_KINDS = ("generate", "off_policy", "on_policy")
STUDENTS, PROGRESSIVE = "students", "progressive"
ROWS_KEY = "rows"  # `${generate.rows}` is the file that the generate stage writes
ROWS_FILE = "responses.jsonl"
# What a stage sets by itself, to resume and to hand over.
OWNED = ("add_version", "mcore_model", "mcore_adapter", "finetune")
# Common keys that the generate stage takes over: its own name, and the names to take from, the first one that is there.
INHERITED = {
    "server": ("teacher_model_server",),
    "model": ("teacher_model", "model"),  # with a server alone: the student's, which has the same tokenizer
    "model_type": ("teacher_model_type", "model_type"),
    "adapters": ("kd_teacher_adapters",),
    "dataset": ("dataset",),
    "kd_datasets": ("kd_datasets",),
    "template": ("template",),
    "torch_dtype": ("torch_dtype",),
}


@dataclass(frozen=True)
class Stage:
    """One command of a recipe.

    Args:
        kind: generate, off_policy or on_policy.
        student: the name in `progressive`, or None.
        folder: where it writes.
        keys: its flags, without what comes from another stage.
        start: the stage whose best checkpoint is its --model.
        teacher: the stage whose best checkpoint is its --teacher_model (for generate: its --model).
        rows: the generate stage whose rows are its --dataset.
    """

    kind: str
    student: str | None
    folder: Path
    keys: dict[str, Any]
    start: "Stage | None" = None
    teacher: "Stage | None" = None
    rows: "Stage | None" = None

    @property
    def name(self) -> str:
        return self.kind if self.student is None else f"{self.student}/{self.kind}"

    @property
    def root(self) -> Path:
        """The folder of the whole run."""
        return self.folder.parent if self.student is None else self.folder.parents[1]

    @property
    def rows_file(self) -> Path:
        return self.folder / ROWS_FILE

    @property
    def sources(self) -> "list[Stage]":
        """The stages that must be finished before this one."""
        return [stage for stage in (self.start, self.teacher, self.rows) if stage is not None]


def has_stages(recipe: Recipe) -> bool:
    return any(_section(recipe.config, kind) is not None for kind in STAGE_KINDS)


def _section(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key, throw_on_resolution_failure=False)


def plain_keys(recipe: Recipe, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The checked keys of a recipe without stages."""
    keys = resolve(recipe.config, recipe.file)
    check_keys(keys, hints, recipe.origin)
    check_flags(keys, recipe.origin)
    return keys


def make_plan(
    recipe: Recipe, megatron: Mapping[str, Any], generate: Mapping[str, Any], output: Path | None = None
) -> list[Stage]:
    """All stages in the order of their running, every key checked.

    Args:
        recipe: a file with a section for each stage.
        megatron, generate: names and types of the flags of `megatron rlhf` and of `swift-kd generate`.
        output: a folder in place of output_dir.

    Raises:
        KDError: an unknown key, a wrong type, a key that stages set by themselves, or a student that is not described.
    """
    output = output or _output_dir(recipe)
    stages: list[Stage] = []
    for student in _students(recipe):
        config = recipe.config if student is None else _of_student(recipe, student)
        folder = output if student is None else output / student
        stages += _stages_of(recipe, config, student, folder, stages[-1] if stages else None)
    for stage in stages:
        _check(stage, recipe, generate if stage.kind == GENERATE else megatron)
    return stages


def _output_dir(recipe: Recipe) -> Path:
    folder = resolve(OmegaConf.masked_copy(recipe.config, ["output_dir"]), recipe.file).get("output_dir")
    if not isinstance(folder, str) or not folder:
        raise KDError(f"{recipe.file}: stages need an output_dir (a folder), in which each of them gets its own.")
    return Path(folder).expanduser().absolute()


def _students(recipe: Recipe) -> list[str | None]:
    names = OmegaConf.to_container(recipe.config, resolve=False).get(PROGRESSIVE)
    if names is None:
        return [None]
    known = list(_section(recipe.config, STUDENTS) or {})
    where = f"{recipe.origin(PROGRESSIVE)}: {PROGRESSIVE}"
    if not isinstance(names, list) or not names or len({*map(str, names)}) < len(names):
        raise KDError(f"{where} is {names!r}; it must be a list of different students, the first trained first.")
    for name in names:
        if name not in known:
            raise KDError(f"{where} names {name!r}{suggest(name, known)}, which {STUDENTS} does not describe.")
    return names


def _of_student(recipe: Recipe, name: str) -> DictConfig:
    overrides = recipe.config[STUDENTS][name]
    if not isinstance(overrides, DictConfig):
        raise KDError(f"{recipe.origin(f'{STUDENTS}.{name}')}: {STUDENTS}.{name} must be a mapping, with its model.")
    return OmegaConf.merge(recipe.config, overrides)


def _stages_of(
    recipe: Recipe, config: DictConfig, student: str | None, folder: Path, before: Stage | None
) -> list[Stage]:
    """One student's stages. `before` is the last stage of the student that becomes the teacher."""
    kinds = [kind for kind in STAGE_KINDS if _section(config, kind) is not None]
    if GENERATE in kinds:
        config = OmegaConf.merge(config, {GENERATE: {ROWS_KEY: str(folder / GENERATE / ROWS_FILE)}})
    values = resolve(config, recipe.file)
    common = {
        key: value for key, value in values.items() if key not in (*STAGE_KINDS, STUDENTS, PROGRESSIVE, "output_dir")
    }
    if before is not None:
        common |= {"teacher_model_server": None, "kd_teacher_adapters": None}
        common |= {"teacher_model": None, "teacher_model_type": before.keys.get("model_type")}
    stages: list[Stage] = []
    for kind in kinds:
        section = values[kind]
        if not isinstance(section, dict):
            raise KDError(f"{recipe.origin(kind)}: {kind} must be a mapping of flags, or null to leave the stage out.")
        keys = _generate_keys(common, section) if kind == GENERATE else {**common, **section}
        if kind == OFF_POLICY and stages and "dataset" not in section:
            keys["dataset"] = str(stages[0].rows_file)
        if kind == GENERATE and before is not None:
            keys = {key: value for key, value in keys.items() if key not in ("server", "model", "adapters")}
        trained = [stage for stage in stages if stage.kind != GENERATE]
        rows = _named_rows(keys, stages)
        stages.append(Stage(kind, student, folder / kind, keys, trained[-1] if trained else None, before, rows))
    return stages


def _named_rows(keys: dict[str, Any], stages: list[Stage]) -> Stage | None:
    """The generate stage, if `dataset` names the file that it writes."""
    dataset = keys.get("dataset")
    for stage in stages:
        if stage.kind == GENERATE and str(stage.rows_file) in (dataset if isinstance(dataset, list) else [dataset]):
            return stage
    return None


def _generate_keys(common: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    section = {key: value for key, value in section.items() if key != ROWS_KEY}
    if isinstance(section.get("thinking"), bool):
        section["thinking"] = "on" if section["thinking"] else "off"  # which YAML reads as true and false
    taken = {}
    for key, names in INHERITED.items():
        value = next((common[name] for name in names if common.get(name) is not None), None)
        if value is not None:
            taken[key] = value
    launch = {key: common[key] for key in LAUNCH_KEYS if key in common and key != "nproc_per_node"}
    return {**launch, **taken, **section}


def _check(stage: Stage, recipe: Recipe, hints: Mapping[str, Any]) -> None:
    def where(key: str) -> str:
        places = [f"{stage.kind}.{key}", key]
        if stage.student is not None:
            places[:0] = [f"{STUDENTS}.{stage.student}.{place}" for place in places]
        dotted_key = next((place for place in places if place in recipe.origins), key)
        return f"{recipe.origin(dotted_key)} ({stage.name})"

    check_keys(stage.keys, hints, where)
    if stage.kind == GENERATE:
        return
    for key in OWNED:
        if key in stage.keys:
            raise KDError(f"{where(key)}: {key} is set by the stages themselves; leave it out.")
    teacher = {} if stage.teacher is None else {"teacher_model": str(stage.teacher.folder)}
    check_flags(stage.keys | teacher, where)
    if "output_dir" in stage.keys:
        raise KDError(f"{where('output_dir')}: a stage has no output_dir of its own; give one for all at the top.")
    save, evaluate = stage.keys.get("save_steps"), stage.keys.get("eval_steps")
    if evaluate is not None and evaluate % (save or evaluate):
        raise KDError(
            f"{where('eval_steps')}: eval_steps {evaluate} is no multiple of save_steps {save}, so the best checkpoint "
            "might not have been saved; give both the same number."
        )
