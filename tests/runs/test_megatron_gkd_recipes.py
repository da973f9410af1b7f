"""The recipes of examples/megatron_gkd on a laptop, through the real command."""

import pytest

from tests.examples.recipes import NEEDS_GPUS, recipes_of, run_tiny
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL
from tests.servers import swift_deploy, wait_for

pytestmark = needs_cpu_backend
WITH_SERVER = ["megatron_gkd/other_layout.yaml", "megatron_gkd/teacher_server.yaml"]
ALONE = [recipe for recipe in recipes_of("megatron_gkd") if recipe not in (*WITH_SERVER, *NEEDS_GPUS)]


@pytest.mark.parametrize("recipe", ALONE)
def test_tiny(recipe, tmp_path, tiny_models):
    (steps,) = run_tiny(tmp_path, tiny_models, recipe).steps.values()
    assert len(steps) == 4


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The server of guides/teachers.md."""
    folder = tmp_path_factory.mktemp("teacher")
    flags = {"max_logprobs": 64, "use_chat_template": False, "vllm_max_model_len": 257, "torch_dtype": "float32"}
    with swift_deploy(BASE_MODEL, folder, **flags) as url:
        wait_for(url)
        yield url


@pytest.mark.parametrize("recipe", WITH_SERVER)
def test_tiny_with_a_server(recipe, tmp_path, tiny_models, teacher):
    (steps,) = run_tiny(tmp_path, tiny_models, recipe, TEACHER=teacher).steps.values()
    assert len(steps) == 4
