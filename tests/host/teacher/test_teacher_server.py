"""--teacher_model_server as it is read, and what of a sample is sent; the servers themselves are in tests/runs."""

import json
from types import SimpleNamespace

import pytest

from swift_kd_plugin.errors import KDError

pytestmark = pytest.mark.usefixtures("cpu_backend")


def test_an_entry_may_name_an_adapter():
    from swift_kd_plugin.host.teacher.teacher_server import TaggedServer, parse_servers

    assert parse_servers("http://a:8000") == [TaggedServer("http://a:8000")]
    entries = [{"url": "http://a:8000", "tags": ["math", 7]}, {"url": "http://b", "tags": ["code"], "adapter": "coder"}]
    assert parse_servers(json.dumps(entries)) == [
        TaggedServer("http://a:8000", ["math", "7"]),
        TaggedServer("http://b", ["code"], "coder"),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"url": "http://a", "adaptor": "x"}], "'adaptor' is not known in an entry; it takes url, tags, adapter"),
        ([{"url": "http://a"}, {"url": "http://b"}], r'--teacher_model_server\[0\]: "tags" must be non-empty'),
        ([{"tags": ["a"]}], '"url" is required'),
    ],
)
def test_a_wrong_entry_is_refused(entries, message):
    from swift_kd_plugin.host.teacher.teacher_server import parse_servers

    with pytest.raises(KDError, match=message):
        parse_servers(json.dumps(entries))


def test_a_sequence_ends_with_its_last_response_token():
    from swift_kd_plugin.host.teacher.teacher_server import _sequence

    view = {"input_ids": [5, 6, 7, 8, 9, 0, 0], "labels": [-100, -100, 7, -100, 9, -100, -100]}
    sequence = _sequence(view)
    assert (sequence.ids, sequence.positions) == ([5, 6, 7, 8, 9], [2, 4])
    assert _sequence({"input_ids": [5, 6], "labels": [-100, -100]}).positions == []


def test_another_tokenizer_is_refused():
    from swift_kd_plugin.host.teacher.teacher_server import check_same_texts
    from tests.tiny_models import make_tokenizer

    tokenizer = make_tokenizer()
    texts = {token: tokenizer.decode([token]) for token in range(5, 380)}
    check_same_texts(tokenizer, texts, "http://a")
    check_same_texts(tokenizer, {token: " " + text for token, text in texts.items()}, "http://a")
    others = {token: texts.get(token + 1, "") for token in texts}
    with pytest.raises(KDError, match="The teacher server http://a has another tokenizer than the student: id"):
        check_same_texts(tokenizer, others, "http://a")


def test_no_medium_is_sent_as_token_ids():
    from swift_kd_plugin.data.columns import MEDIA_COLUMNS
    from swift_kd_plugin.host.teacher.teacher_server import _prepare

    server, nothing = SimpleNamespace(needs_messages=False, name="http://a"), dict.fromkeys(MEDIA_COLUMNS)
    assert _prepare(server, [SimpleNamespace(**nothing)], ["sequence"], None) == ["sequence"]
    for column in MEDIA_COLUMNS:
        with pytest.raises(
            KDError, match="images, videos or audio cannot go as token ids to the teacher server http://a"
        ):
            _prepare(server, [SimpleNamespace(**nothing | {column: ["file"]})], ["sequence"], None)
