"""Engines of vLLM that cannot start or answer, and what is said of each.

python -m tests.generation.failing_vllm_engines FOLDER
"""

import json
import sys
from pathlib import Path

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.vllm_engine import VllmEngine
from tests.generation.ask_engine import GREEDY, load_base_template, make_prompts
from tests.paths import BASE_MODEL
from tests.tiny_models import make_dense


def sentence_of(model: Path, **settings) -> str | None:
    """Why it does not start or answer; None if it does."""
    try:
        with VllmEngine(model, load_base_template(model), **settings) as engine:
            engine.generate(make_prompts(2), GREEDY)
    except KDError as error:
        return str(error)
    return None


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {
        "head size": sentence_of(make_dense(folder / "small_heads", head_dim=16)),
        "memory": sentence_of(BASE_MODEL, gpu_memory_utilization=1.0, max_model_len=256),
        "cache": sentence_of(BASE_MODEL, max_model_len=256, engine_kwargs={"kv_cache_memory_bytes": 1000}),
        "context": sentence_of(BASE_MODEL, max_model_len=100_000),
        "none": sentence_of(BASE_MODEL, max_model_len=256),
    }
    (folder / "found.json").write_text(json.dumps(found))
