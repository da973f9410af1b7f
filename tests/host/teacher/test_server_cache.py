"""Whose rows a run with teacher servers takes from a cache, and whether they still say them; real servers are in
tests/runs."""

import json
from types import SimpleNamespace

import pytest
import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.cache_codecs import TopKCodec
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.teacher_cache import TeacherCache
from swift_kd_plugin.teacher.teacher_outputs import TopKOutputs
from tests.gloo_ranks import run_distributed
from tests.launching.commands import HAS_GPU

pytestmark = pytest.mark.usefixtures("cpu_backend")

TOPK, VOCABULARY = 4, 1000
SETTINGS = {"k": TOPK, "vocabulary": VOCABULARY, "temperature": 1.0}
TEMPLATE = SimpleNamespace(tokenizer=range(VOCABULARY), template_meta=SimpleNamespace(template_type="qwen3"))
VIEW = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
MATH, CODE = {"url": "http://math:8000", "tags": ["math"]}, {"url": "http://code:9000", "tags": ["code"]}


START = 7  # the first id of each sample, and of no other text


def fill(folder, name: str, url: str, view: dict = VIEW) -> None:
    """What a run with the server `name` at `url` would have left of one sample."""
    from swift_kd_plugin.host.teacher.cache_keys import cache_entry

    identity = CacheIdentity(f"server of {name}", (), 16, "as served", "topk", SETTINGS)
    cache = TeacherCache(folder, identity, {"template": "qwen3", "url": url, "teacher": f"{name} behind {url}"})
    rows = torch.randn(2, TOPK).log_softmax(-1), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    values = TopKCodec(k=TOPK, vocabulary=VOCABULARY + 1024, temperature=1.0).encode(TopKOutputs(rows, torch.zeros(2)))
    cache.add(
        cache_entry({0: identity.digest}, SimpleNamespace(name="row 1", response_token_ids=[]), view).keys[0], values
    )
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


def test_a_token_that_is_told_no_more_counts_by_what_is_left():
    from swift_kd_plugin.host.teacher.same_server import distance

    before = [{"1": -0.01}, {"1": -0.7, "2": -0.7}]
    assert distance(before, before) == 0
    assert distance(before, [{"1": -0.11}, before[1]]) == pytest.approx(0.05)
    assert distance(before, [{"5": -0.01}, before[1]]) > 2
    assert distance(before, before[:1]) == float("inf")


def test_what_has_no_probability_is_not_told():
    from swift_kd_plugin.host.teacher.same_server import told
    from swift_kd_plugin.serving.scoring_routes import ServerScores

    scores = ServerScores(torch.tensor([[-0.5, -1.0, -torch.inf]]), torch.tensor([[4, 5, 0]]))
    assert told(scores) == [{"4": -0.5, "5": -1.0}]
    assert told(scores, 1) == [{"4": -0.5}]
    long = ServerScores(scores.log_probs.expand(1000, 3), scores.ids.expand(1000, 3))
    assert len(told(long)) == 256


class Ids:
    """A tokenizer as far as a server's cache asks it."""

    def __len__(self):
        return VOCABULARY

    def encode(self, text, add_special_tokens):
        return [10 + ord(letter) % 30 for letter in text]


def train_further(answers):
    """As a server whose teacher was trained on samples alone: the fixed text does not show it."""
    for ids, entries in answers:
        for entry in entries[1:] if ids[0] == START else ():
            for told in entry.values():
                told["logprob"] = -1.0 - (told["logprob"] + 1.0) % 5


def runs_on_rank(rank: int, folder, mode: str) -> list:
    """What two runs read, scored and asked, of which the second has two samples more, and whether it was refused when
    the server has other weights behind the same name and fixed text."""
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import mpu

    from tests.teacher.fake_vllm import serve

    mpu.initialize_model_parallel()
    with serve() as teacher:
        first = run(teacher, folder, "auto", 6)
        second = run(teacher, folder, mode, 8)
        teacher.spoil = train_further
        try:
            third = run(teacher, folder, mode, 8)
        except KDError as error:
            third = str(error)
    return [first, second, third]


def run(teacher, folder, mode: str, samples: int) -> tuple[int, int, int]:
    """One step over each two samples: how many were read, scored and asked of the server."""
    from swift_kd_plugin.host.teacher.server_cache import ServerCache
    from swift_kd_plugin.host.teacher.teacher_server import parse_servers
    from swift_kd_plugin.serving.model_server import TeacherServer
    from swift_kd_plugin.serving.scoring_routes import Sequence

    server = TeacherServer(teacher.url, TOPK)
    server.connect()
    args = SimpleNamespace(kd_teacher_cache=str(folder), kd_teacher_cache_mode=mode, gkd_logits_topk=TOPK)
    template = SimpleNamespace(tokenizer=Ids(), template_meta=TEMPLATE.template_meta)
    cache, asked = ServerCache(args, template, parse_servers(teacher.url), [server], rank=0), 0
    for step in range(samples // 2):
        ids = [[START, 2, 2 * step + number + 8, 3, 4] for number in range(2)]
        views = [{"input_ids": of_sample, "labels": [-100, -100, *of_sample[2:]]} for of_sample in ids]
        names = [SimpleNamespace(name=f"row {2 * step + number}", response_token_ids=[]) for number in range(2)]
        results = [None, None]
        (indices,) = cache.fill_in(results, [[0, 1]], names, views)
        asked += len(indices)
        for index, scores in zip(indices, server.score([Sequence(ids[i], [2, 3, 4]) for i in indices]), strict=True):
            results[index] = scores
        cache.keep(0, indices, results)
        assert all(len(scores.ids) == 3 for scores in results)
    cache.flush()
    return cache.read, cache.scored, asked


@pytest.mark.skipif(HAS_GPU, reason="ranks without a GPU of their own")
@pytest.mark.parametrize(("mode", "second"), [("auto", (6, 2, 6)), ("write", (0, 8, 8))])
def test_a_teacher_that_was_trained_further_is_found_on_the_rows(tmp_path, mode, second):
    (said,) = run_distributed(runs_on_rank, 1, tmp_path, mode)
    assert said[:2] == [(0, 6, 6), second]
    assert "says something else of row 0, row 1 than when " in said[2]
    assert "it serves other weights as teacher; give another --kd_teacher_cache, or clear that teacher" in said[2]
