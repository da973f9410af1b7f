"""Which flags belong to which model."""

from types import SimpleNamespace

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.evaluation.models import read_models


def read(*models: str, **flags: list[str]):
    usual = dict.fromkeys(("adapters", "server", "server_adapter", "template", "model_type", "bits"))
    return read_models(SimpleNamespace(**usual | {"model": models, "engine": "auto"} | flags))


def test_a_value_is_for_all_and_a_named_one_for_one():
    found = read(
        *("student=out/checkpoint-80", "Qwen/Qwen3-8B", "./base/"),
        template=["qwen3"],
        adapters=["student=a", "student=b"],
        server=["Qwen3-8B=http://host:8000"],
    )
    assert {name: one.model for name, one in found.items()} == {
        "student": "out/checkpoint-80",
        "Qwen3-8B": "Qwen/Qwen3-8B",
        "base": "./base/",
    }
    assert [one.template for one in found.values()] == ["qwen3"] * 3
    assert [one.adapters for one in found.values()] == [["a", "b"], [], []]
    assert [one.server for one in found.values()] == [None, "http://host:8000", None]
    assert [one.engine_name for one in found.values()][1] == "server"


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-5").mkdir()
    assert read("out/lr=1e-5/checkpoint-80")["checkpoint-80"].model == "out/lr=1e-5/checkpoint-80"
    with pytest.raises(KDError, match="needs a name of letters and digits: --model NAME=lr=1e-5"):
        read("lr=1e-5")
    assert read("a=lr=1e-5")["a"].model == "lr=1e-5"


@pytest.mark.parametrize(
    ("models", "flags", "said"),
    [
        (("a/checkpoint-1", "b/checkpoint-1"), {}, "two models are called checkpoint-1"),
        (("student=a",), {"adapters": ["studnet=b"]}, "no model is called studnet (did you mean 'student'?)"),
        (("student=a",), {"template": ["qwen3", "student=qwen2_5"]}, "--template is given twice for student"),
        (("t=http://host:8000",), {}, "is an address; give --model NAME=FOLDER"),
    ],
)
def test_what_cannot_be_meant_is_refused(models, flags, said):
    with pytest.raises(KDError) as error:
        read(*models, **flags)
    assert said in str(error.value)


def test_bits_are_of_one_model():
    found = read("student=a", "teacher=b", "other=c", bits=["teacher=4", "other=all"])
    assert [one.bits for one in found.values()] == [None, 4, "all"]
    with pytest.raises(KDError, match="--bits all of c: it must be 8 or 4"):
        _ = found["other"].engine_name
