"""The table of what is overridden and read of ms-swift's trainer, held against the trainer that is installed."""

import ast
import copy
import inspect
import shutil
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from swift_kd_plugin.host.start.seams import ATTRIBUTES, OWN_ATTRIBUTES, SEAMS, TEACHER_ROLLOUT, broken_seams
from tests.paths import ROOT

SWIFT = Path(find_spec("swift").origin).parent
OURS = ("base_trainer", "stock_trainer", "trainer", "rollout_hooks", "vllm_writers")


def test_the_installed_host_has_them():
    broken = broken_seams(SWIFT)
    assert not broken, "\n".join(broken)


def copy_trainers(swift: Path) -> Path:
    for folder in ("megatron/trainers", "rlhf_trainers"):
        shutil.copytree(SWIFT / folder, swift / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return swift / "megatron" / "trainers"


def test_a_host_that_renamed_four_is_told_by_name(tmp_path):
    trainers = copy_trainers(tmp_path / "swift")
    for file, old, new in (
        ("base.py", "def save_checkpoint(self", "def write_checkpoint(self"),
        ("gkd_trainer.py", "def forward_step(self, data_iterator, model", "def forward_step(self, data, model"),
        ("gkd_trainer.py", "self.gkd_logits_topk =", "self.topk ="),
        ("rollout_mixin.py", "args.vllm_enable_lora", "args.lora"),
    ):
        text = (trainers / file).read_text()
        assert old in text
        (trainers / file).write_text(text.replace(old, new))
    stock = "swift.megatron.trainers"
    assert sorted(broken_seams(tmp_path / "swift")) == [
        "no trainer of ms-swift has gkd_logits_topk, which the plugin reads.",
        f"{stock}.base.BaseMegatronTrainer.save_checkpoint is gone; the plugin overrides it for: a checkpoint says "
        "whether it is whole.",
        f"{stock}.gkd_trainer.MegatronGKDTrainer.forward_step takes (self data model), and the plugin overrides it as "
        "(self data_iterator model).",
        "the rollout of ms-swift reads no args.vllm_enable_lora, which is another for the teacher: the adapter is the "
        "student's.",
    ]


@pytest.mark.usefixtures("cpu_backend")
def test_all_that_is_overridden_is_in_the_table():
    from swift_kd_plugin.host.rollout.rollout_hooks import RolloutHooks
    from swift_kd_plugin.host.rollout.vllm_writers import ColocatedVllm
    from swift_kd_plugin.host.train.base_trainer import BaseTrainer
    from swift_kd_plugin.host.train.score_trainer import ScoreTrainer
    from swift_kd_plugin.host.train.stock_trainer import StockLossTrainer
    from swift_kd_plugin.host.train.trainer import KDTrainer

    plugins = (ColocatedVllm, RolloutHooks, BaseTrainer, StockLossTrainer, KDTrainer, ScoreTrainer)
    stock = [kind for kind in KDTrainer.__mro__ if kind not in (*plugins, object)]
    overridden = {
        f"{kind.__module__}.{kind.__qualname__}.{name}"
        for ours in plugins
        for name, value in vars(ours).items()
        if callable(value) and not isinstance(value, type)
        for kind in [next((kind for kind in stock if name in vars(kind)), None)]
        if kind is not None
    }
    assert overridden == {seam.symbol for seam in SEAMS}


@pytest.mark.usefixtures("cpu_backend")
def test_the_teachers_rollout_is_given_what_the_table_says():
    from swift_kd_plugin.host.rollout import vllm_writers

    names = {name.removeprefix("args.") for name in TEACHER_ROLLOUT if name.startswith("args.")}
    others = ("teacher_model_info", "teacher_model_type", "kd_teacher_gpu_memory_utilization")
    args = SimpleNamespace(**{name: object() for name in (*names, *others)}, _teacher_use_disable_adapter=False)
    args.vllm_engine_kwargs, args.sleep_level = {}, 2
    given = vars(vllm_writers.arguments_of_teacher(args, 0.7))
    assert {name for name, value in given.items() if value is not vars(args)[name]} == names
    writer = next(node for node in tree_of(vllm_writers).body if getattr(node, "name", None) == "TeacherVllm")
    stored = {ast.unparse(node) for node in ast.walk(writer) if isinstance(getattr(node, "ctx", None), ast.Store)}
    own = {name for name in stored if name.startswith("self.")} - {"self.trainer", "self.args"}
    assert own == TEACHER_ROLLOUT.keys() - {f"args.{name}" for name in names}


@pytest.mark.usefixtures("cpu_backend")
def test_the_teachers_rollout_reads_nothing_of_a_trainer():
    from swift.megatron.trainers import rollout_mixin
    from swift.rlhf_trainers import base_rollout_mixin

    kinds = [node for module in (rollout_mixin, base_rollout_mixin) for node in tree_of(module).body]
    methods = {node.name: node for kind in kinds for node in getattr(kind, "body", ()) if hasattr(node, "args")}
    waiting, reached = ["_init_rollout_engine", "_generate_completions"], {}
    while waiting:
        name = waiting.pop()
        found = [node for node in ast.walk(methods[name]) if isinstance(node, ast.Attribute)]
        reached[name] = [node for node in found if ast.unparse(node.value) == "self"]
        called = {node.attr for node in reached[name]} & methods.keys()
        # The weights never change, room is made by the trainer, and its engine is in this process.
        waiting += called - reached.keys() - {"_move_model_to_vllm", "offload_context", "_server_rollout"}
    nodes = [node for found in reached.values() for node in found]
    stored = {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
    elsewhere = {"vllm_client", "unwrapped_models"}  # with a server, and on Ascend
    assert {node.attr for node in nodes} - stored - methods.keys() - elsewhere == {"args", "template"}


def tree_of(module) -> ast.Module:
    return ast.parse(inspect.getsource(module))


@pytest.mark.usefixtures("cpu_backend")
@pytest.mark.parametrize(
    ("divergence", "name"),
    [("stock", "StockLossTrainer"), ("jsd", "KDTrainer"), (None, "KDTrainer"), (None, "ScoreTrainer")],
)
def test_the_flags_choose_the_trainer(divergence, name):
    from swift_kd_plugin.host.train.base_trainer import BaseTrainer
    from swift_kd_plugin.host.train.score_trainer import ScoreTrainer
    from swift_kd_plugin.host.train.stock_trainer import StockLossTrainer
    from swift_kd_plugin.host.train.trainer import KDTrainer

    assert set(BaseTrainer.of_loss.values()) == {StockLossTrainer, KDTrainer, ScoreTrainer}
    args = SimpleNamespace(kd_divergence=divergence, kd_teacher_cache_mode="fill" if name == "ScoreTrainer" else "auto")
    trainer = BaseTrainer.__new__(BaseTrainer, args, template=None)
    assert type(trainer).__name__ == name
    assert type(copy.copy(trainer)) is type(trainer)


def test_a_host_without_a_file_is_told_so(tmp_path):
    (copy_trainers(tmp_path) / "rollout_mixin.py").unlink()
    broken = "\n".join(broken_seams(tmp_path))
    assert "MegatronRolloutMixin._init_rollout_engine is gone" in broken
    assert "no trainer of ms-swift has _is_self_distillation, which the plugin reads." in broken


@pytest.mark.usefixtures("cpu_backend")
def test_who_extends_neither_trainer_is_told_so():
    from swift_kd_plugin.errors import KDError
    from swift_kd_plugin.host.train.base_trainer import BaseTrainer

    class Mine(BaseTrainer):
        pass

    with pytest.raises(KDError, match="Mine extends ms-swift's MegatronGKDTrainer; let it extend"):
        Mine(SimpleNamespace(kd_divergence=None), template=None)


def test_all_that_is_read_of_a_trainer_is_in_the_table_or_ours():
    read, of_self, own = set(), set(), {"trainer", "side"}
    for file in (ROOT / "swift_kd_plugin" / "host").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                stores = isinstance(node.ctx, ast.Store)
                if node.value.id == "trainer":
                    (own if stores else read).add(node.attr)
                elif node.value.id == "self" and file.stem in OURS:
                    (own if stores else of_self).add(node.attr)
            elif isinstance(node, ast.FunctionDef) and file.stem in OURS:
                own.add(node.name)
    overridden = {seam.method.split(".")[1] for seam in SEAMS}
    assert read - own - overridden <= set(ATTRIBUTES)
    assert of_self - own - overridden <= {*ATTRIBUTES, *OWN_ATTRIBUTES}


def test_all_that_is_kept_for_the_plugin_is_a_field_of_its_state():
    from swift_kd_plugin.host.samples.kd_state import KDState

    used = {
        node.attr
        for file in (ROOT / "swift_kd_plugin" / "host").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "kd"
    }
    assert used == {field.name for field in fields(KDState)}


def test_the_protocol_of_the_trainer_has_what_is_read():
    from swift_kd_plugin.host.samples.host_trainer import HostTrainer

    known = HostTrainer.__annotations__.keys() - {"kd"}
    assert {name for name in ATTRIBUTES if not name.startswith("_")} == known
