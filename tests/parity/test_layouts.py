"""Every layout trains like one process: losses, gradients, saved weights, through the real command."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import Run, megatron_rlhf
from tests.parity.distance import Distance, compare
from tests.parity.layouts import FAMILIES, LAYOUTS, TP, WRONG_IN_STOCK, Layout
from tests.paths import BASE_MODEL, DATA, EXAMPLES, ROOT
from tests.tiny_models import make_adapter, make_dense, make_moe, make_pictures, make_sums, make_vision_model

RECORDER = ROOT / "tests" / "recorders" / "record_gradients.py"
WITHOUT_TORCHVISION = EXAMPLES / "without_torchvision.py"
VISION = {"Qwen2.5-VL": "qwen2_5_vl", "Qwen3-VL": "qwen3_vl"}
COMMON = {
    "rlhf_type": "gkd",
    "external_plugins": ["swift_kd_plugin", RECORDER],
    "template": "qwen3",
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "train_iters": 4,
    "lr": 1e-4,
    "max_length": 256,
    "beta": 0.5,
    "temperature": 0.9,
    "lmbda": 0,
    "recompute_granularity": "none",
    "logging_steps": 1,
    "torch_dtype": "bfloat16",
    "dataset_num_proc": 1,
    "no_save_optim": True,
    "kd_grad_norm": "exact",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """Students, teachers (larger than the students) and questions."""
    folder = tmp_path_factory.mktemp("parity")
    make_dense(folder / "student", hidden=64, seed=0)
    make_dense(folder / "teacher", hidden=128, seed=1)
    make_adapter(folder / "adapter", folder / "student", seed=2)
    for name, active in (("moe", 2), ("all_moe", 4)):
        make_moe(folder / f"{name}_student", seed=0, active=active)
        make_moe(folder / f"{name}_teacher", hidden=128, seed=1, active=active)
    make_sums(folder / "sums.jsonl")
    # A multiple of every batch size: what is left over is dropped, and would be another part of the rows.
    make_views(folder / "views.jsonl", make_sums(folder / "more_sums.jsonl", rows=36))
    make_dense(folder / "tied_student", hidden=64, seed=0, tie_word_embeddings=True)
    make_dense(folder / "tied_teacher", hidden=128, seed=1, tie_word_embeddings=True)
    make_confident_pairs(folder / "pairs.jsonl")
    for model_type in VISION.values():
        make_vision_model(folder / f"{model_type}_student", model_type, seed=0)
        make_vision_model(folder / f"{model_type}_teacher", model_type, hidden=128, seed=1)
    make_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def references(material) -> dict[str, tuple[Run, Path]]:
    return {}


@pytest.fixture(scope="module")
def figures():
    """Distances by layout, printed as a table at the end and written to the file named by KD_PARITY_TABLE."""
    table: dict[str, Distance] = {}
    yield table
    print_table(table)


def make_views(file: Path, sums: Path) -> None:
    """The teacher alone sees a system prompt, of 8 or of 200 tokens (each " 7" is one)."""
    rows = read_json_lines(sums)
    for index, row in enumerate(rows):
        hint = {"role": "system", "content": " 7" * (8, 200)[index % 2]}
        row["teacher_messages"] = [hint, row["messages"][0]]
    write_json_lines(file, rows)


def make_confident_pairs(file: Path, rows: int = 128) -> None:
    """Questions that the student answers from the book in its own view, while the teacher's view has another book.

    Both are sure of their answers: neither what the student writes nor the teacher's top-k hangs on the last bit.
    """
    shifted = str.maketrans("0123456789", "3456789012")
    pairs = []
    for row in read_json_lines(DATA / "exp.jsonl")[:rows]:
        messages = row["messages"]
        system, question = messages[0], messages[-2]
        other = {**system, "content": system["content"].translate(shifted)}
        pairs.append({"messages": messages, "teacher_messages": [other, question]})
    write_json_lines(file, pairs)


def train(material: Path, layout: Layout) -> tuple[Run, Path]:
    folder = material / "runs" / f"{layout.reference} {layout.name}".replace(" ", "_").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    gradients = folder / "gradients.safetensors"
    flags = {**COMMON, **models_for(material, layout.reference), **FAMILIES[layout.reference], **layout.flags}
    run = megatron_rlhf(folder, flags, layout.processes, {"KD_TEST_GRADIENTS": str(gradients)})
    return run.expect_success(), gradients


def train_reference(material: Path, references: dict, family: str) -> tuple[Run, Path]:
    if family not in references:
        references[family] = train(material, Layout("one process", family, 1))
    return references[family]


def models_for(material: Path, family: str) -> dict[str, object]:
    if family in VISION:
        return vision_models_for(material, VISION[family])
    if family in ("on-policy", "top-k"):
        rows = material / "pairs.jsonl"
        student = teacher = BASE_MODEL
    else:
        rows = material / ("views.jsonl" if family in ("views", "features") else "sums.jsonl")
        kinds = {"moe": "moe_", "features, moe": "moe_", "moe, all active": "all_moe_", "tied": "tied_"}
        kind = kinds.get(family, "")
        student, teacher = material / f"{kind}student", material / f"{kind}teacher"
    model_type = "qwen3_moe" if "moe" in family else "qwen3"
    return {
        "model": student,
        "teacher_model": teacher,
        "model_type": model_type,
        "teacher_model_type": model_type,
        "dataset": rows,
        "adapters": material / "adapter" if family in ("lora", "features, LoRA") else None,
    }


def test_stock_gradient_norm_is_too_small_under_tensor_parallelism(material, references):
    """Megatron counts a parameter that is not marked tensor-parallel on one rank only; the vocabulary's are not."""
    truth, _ = train_reference(material, references, "dense")
    stock, _ = train(material, Layout("TP2, stock norm", "dense", 2, {TP: 2, "kd_grad_norm": "stock"}))
    assert stock.grad_norms[0] < 0.97 * truth.grad_norms[0], (stock.grad_norms, truth.grad_norms)


def vision_models_for(material: Path, model_type: str) -> dict[str, object]:
    return {
        "external_plugins": [*COMMON["external_plugins"], WITHOUT_TORCHVISION],
        "model": material / f"{model_type}_student",
        "teacher_model": material / f"{model_type}_teacher",
        "model_type": model_type,
        "teacher_model_type": model_type,
        "template": model_type,
        "dataset": material / "pictures" / "pictures.jsonl",
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layout_trains_like_one_process(layout, material, references, figures):
    truth, true_gradients = train_reference(material, references, layout.reference)
    run, gradients = train(material, layout)

    distance = compare(run, truth, gradients, true_gradients)
    figures[layout.name] = distance

    assert "The loss takes the student's " in run.log
    assert "Of the teacher its " in run.log
    assert distance.loss < 0.005, distance
    assert distance.grad_norm < 0.02, distance
    assert distance.norm < 0.02, distance
    assert distance.cosine > 0.999, distance
    assert distance.weights < 0.01, distance


@pytest.mark.parametrize("layout", WRONG_IN_STOCK, ids=lambda layout: layout.name)
def test_layout_that_stock_gets_wrong(layout, material, references, figures):
    """Fails when the host has been mended: then the layout belongs into LAYOUTS."""
    truth, true_gradients = train_reference(material, references, layout.reference)
    run, gradients = train(material, layout)
    figures[layout.name] = distance = compare(run, truth, gradients, true_gradients)
    assert distance.loss < 0.005, distance
    assert "deepstack" in distance.norm_of, distance
    assert 0.45 < distance.norm < 0.55, distance


def print_table(table: dict[str, Distance]) -> None:
    print("\n| layout | loss | gradient norm | one gradient's norm | lowest cosine | saved weights |")
    print("|---|---|---|---|---|---|")
    for name, d in table.items():
        print(f"| {name} | {d.loss:.3%} | {d.grad_norm:.3%} | {d.norm:.3%} | {d.cosine:.6f} | {d.weights:.3%} |")
    file = os.environ.get("KD_PARITY_TABLE")
    if file:
        Path(file).write_text(json.dumps({k: dataclasses.asdict(v) for k, v in table.items()}, indent=2))
