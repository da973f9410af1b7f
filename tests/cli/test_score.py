"""`swift-kd score` on a training run's file, up to the command."""

from typer.testing import CliRunner

from swift_kd_plugin.cli.main import app

FILE = """\
model: student
teacher_model: teacher
dataset: rows.jsonl
lmbda: 0.5
kd_student_engine: transformers
train_iters: 100
kd_teacher_cache: cache
"""


def score(folder, text: str, *overrides: str) -> tuple[int, str]:
    (folder / "run.yaml").write_text(text)
    result = CliRunner().invoke(app, ["score", str(folder / "run.yaml"), *overrides, "--dry_run"])
    return result.exit_code, result.output


def test_what_the_student_does_is_left_out(tmp_path):
    code, text = score(tmp_path, FILE, "tensor_model_parallel_size=2", "nproc_per_node=2")
    assert code == 0, text
    for part in ("--kd_teacher_cache_mode fill", "--lmbda 0", "--tensor_model_parallel_size 2", "--num_train_epochs 1"):
        assert part in text
    assert "--output_dir cache/score" in text
    for part in ("kd_student_engine", "train_iters"):
        assert part not in text


def test_mistakes_are_one_sentence(tmp_path):
    code, text = score(tmp_path, FILE.replace("kd_teacher_cache", "output_dir"))
    assert code == 1
    assert "has no kd_teacher_cache, the folder to fill; add it, or give kd_teacher_cache=FOLDER." in text
    code, text = score(tmp_path, FILE + "off_policy: {lr: 1e-5}\n")
    assert code == 1
    assert "has stages, and a teacher scores the rows of one run" in text


def test_what_is_set_anyway_is_not_refused(tmp_path):
    """Without lmbda the run's own flags would ask where the student writes."""
    text = "\n".join(line for line in FILE.splitlines() if "lmbda" not in line and "engine" not in line)
    code, page = score(tmp_path, text, "lmbda=1", "kd_teacher_cache_mode=read")
    assert code == 0, page
    assert page.count("--lmbda 0") == page.count("--kd_teacher_cache_mode fill") == 1
