"""Whose rows a run with teacher servers takes from a cache; the servers themselves are in tests/runs."""

import json
from types import SimpleNamespace

import pytest
import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.cache_codecs import TopKCodec
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.teacher_cache import TeacherCache
from swift_kd_plugin.teacher.teacher_outputs import TopKOutputs

pytestmark = pytest.mark.usefixtures("cpu_backend")

TOPK, VOCABULARY = 4, 1000
SETTINGS = {"k": TOPK, "vocabulary": VOCABULARY, "temperature": 1.0}
TEMPLATE = SimpleNamespace(tokenizer=range(VOCABULARY), template_meta=SimpleNamespace(template_type="qwen3"))
VIEW = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
MATH, CODE = {"url": "http://math:8000", "tags": ["math"]}, {"url": "http://code:9000", "tags": ["code"]}


def fill(folder, name: str, url: str, view: dict = VIEW) -> None:
    """What a run with the server `name` at `url` would have left of one sample."""
    from swift_kd_plugin.host.teacher.cache_keys import cache_entry

    identity = CacheIdentity(f"server of {name}", (), 16, "as served", "topk", SETTINGS)
    cache = TeacherCache(folder, identity, {"template": "qwen3", "url": url, "teacher": f"{name} behind {url}"})
    rows = torch.randn(2, TOPK).log_softmax(-1), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    values = TopKCodec(k=TOPK, vocabulary=VOCABULARY + 1024, temperature=1.0).encode(TopKOutputs(rows, torch.zeros(2)))
    cache.add(cache_entry({0: identity.digest}, "row 1", view).keys[0], values)
    cache.flush()


def open_to_read(folder, *entries):
    """The cache of a run that only reads, with these entries of --teacher_model_server."""
    from swift_kd_plugin.host.teacher.server_cache import ServerCache
    from swift_kd_plugin.host.teacher.teacher_server import parse_servers

    args = SimpleNamespace(kd_teacher_cache=str(folder), kd_teacher_cache_mode="read", gkd_logits_topk=TOPK)
    value = entries[0]["url"] if len(entries) == 1 else json.dumps(entries)
    return ServerCache(args, TEMPLATE, parse_servers(value), [], rank=0)


def chosen(cache) -> list[str]:
    return [teacher.cache.identity.teacher for teacher in cache._teachers]


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    from swift_kd_plugin.host.teacher import server_choice

    said = []
    monkeypatch.setattr(server_choice.logger, "warning", said.append)
    return said


def test_of_several_servers_each_takes_the_rows_of_its_address(tmp_path, warnings):
    fill(tmp_path, "coder", "http://code:9000/")
    fill(tmp_path, "Qwen-math", "http://math:8000")
    assert chosen(open_to_read(tmp_path, MATH, CODE)) == ["server of Qwen-math", "server of coder"]
    assert not warnings


def test_of_several_servers_none_takes_the_rows_of_another(tmp_path):
    fill(tmp_path, "Qwen-math", "http://math:8000")
    with pytest.raises(KDError) as raised:
        open_to_read(tmp_path, MATH, CODE)
    assert str(raised.value) == (
        f"--kd_teacher_cache {tmp_path} holds no rows from http://code:9000 of --teacher_model_server (those there are "
        "of Qwen-math behind http://math:8000); with several servers each takes the rows of its address: give the one "
        "from which they came, or let --kd_teacher_cache_mode auto score what is missing."
    )


def test_two_entries_of_one_server_share_its_rows(tmp_path):
    fill(tmp_path, "Qwen", "http://math:8000")
    assert chosen(open_to_read(tmp_path, MATH, {**CODE, "url": "http://math:8000/"})) == ["server of Qwen"] * 2


def test_rows_of_another_address_are_said(tmp_path, warnings):
    fill(tmp_path, "Qwen-math", "http://math:8000")
    assert chosen(open_to_read(tmp_path, CODE)) == ["server of Qwen-math"]
    assert warnings == [
        f"--kd_teacher_cache {tmp_path} holds no rows from http://code:9000: those of Qwen-math behind "
        "http://math:8000 are read, the only ones there with these settings."
    ]
    assert chosen(open_to_read(tmp_path, MATH)) == ["server of Qwen-math"]
    assert len(warnings) == 1


def test_every_address_from_which_rows_came_counts(tmp_path, warnings):
    fill(tmp_path, "Qwen", "http://math:8000")
    fill(tmp_path, "Qwen", "http://code:9000", {**VIEW, "input_ids": [9, 2, 3, 4]})
    assert chosen(open_to_read(tmp_path, MATH, CODE)) == ["server of Qwen"] * 2
    assert not warnings


def test_rows_of_several_servers_need_an_address(tmp_path):
    for name in ("one", "other"):
        fill(tmp_path, name, f"http://{name}:1")
    assert chosen(open_to_read(tmp_path, {"url": "http://other:1"})) == ["server of other"]
    with pytest.raises(KDError, match=r"of several servers \(one behind http://one:1, other behind http://other:1\)"):
        open_to_read(tmp_path, MATH)
    fill(tmp_path, "later", "http://other:1")
    with pytest.raises(KDError, match="several of them from http://other:1"):
        open_to_read(tmp_path, {"url": "http://other:1"})
