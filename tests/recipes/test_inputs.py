"""What a recipe reads: made by its `prepare`, and looked for from the right folder."""

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.inputs import provide_inputs

MAKE = "import pathlib, sys\nfolder = pathlib.Path(sys.argv[1], 'small')\nfolder.mkdir(parents=True)\n"


def where(key: str) -> str:
    return f"run.yaml, {key}"


def provide(folder, keys: dict) -> list[str]:
    said: list[str] = []
    provide_inputs(keys, where, folder / "recipes/run.yaml", said.append)
    return said


@pytest.fixture
def clone(tmp_path, monkeypatch):
    folder = tmp_path / "clone"
    (folder / "recipes").mkdir(parents=True)
    (folder / "make.py").write_text(MAKE)
    monkeypatch.chdir(folder)
    return folder


def test_what_is_missing_is_made_once(clone):
    keys = {"model": "./out/tiny/small", "prepare": {"folder": "./out/tiny", "script": "make.py"}}
    assert provide(clone, keys) == ["out/tiny/small is not there: python make.py ./out/tiny"]
    assert (clone / "out/tiny/small").is_dir()
    assert provide(clone, keys) == []
    assert provide(clone, keys | {"model": "org/name", "dataset": ["pairs#16"]}) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"prepare": {"folder": "out"}}, "run.yaml, prepare: prepare lacks the key 'script'"),
        (
            {"prepare": {"folder": "out", "script": "none.py"}, "model": "out/m"},
            "names none.py, which is to make out/m",
        ),
        (
            {"prepare": {"folder": "out", "script": "bad.py"}, "model": "out/m"},
            "bad.py ended with exit code 3; its own",
        ),
    ],
)
def test_a_preparation_that_cannot_be_is_one_sentence(clone, keys, said):
    (clone / "bad.py").write_text("raise SystemExit(3)")
    with pytest.raises(KDError) as error:
        provide(clone, keys)
    assert said in str(error.value)


def test_another_folder_than_the_recipes_paths_begin_in_is_named(clone, tmp_path, monkeypatch):
    (clone / "data").mkdir()
    (clone / "data/rows.jsonl").write_text("{}\n")
    keys = {"model": "Qwen/Qwen3-8B", "dataset": ["pairs", "./data/rows.jsonl#16"]}
    assert provide(clone, keys) == []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDError) as error:
        provide(clone, keys)
    assert str(error.value) == (
        f"run.yaml, dataset: dataset data/rows.jsonl is not in the current folder, {tmp_path}, but in {clone}; paths "
        f"of a recipe begin in the current folder, so start it from there (cd {clone})."
    )
