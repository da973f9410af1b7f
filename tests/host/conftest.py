"""Templates of ms-swift around a tiny model, with the think blocks of Qwen3's chat template."""

import pytest

from tests.host.thinking_views import CHAT_TEMPLATE
from tests.tiny_models import make_dense


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    from swift.model import get_processor

    made = get_processor(str(make_dense(tmp_path_factory.mktemp("thinking") / "model")), model_type="qwen3")
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def make_template(processor):
    from swift.template import get_template

    def make(kind="qwen3", loss_scale="last_round", **settings):
        made = get_template(processor, template_type=kind, loss_scale=loss_scale, **settings)
        made.set_mode("train")
        return made

    return make


@pytest.fixture(scope="module")
def template(make_template):
    return make_template()
