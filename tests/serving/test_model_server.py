"""The client of a teacher server against a real HTTP server that speaks its protocol and fails on demand."""

import random
import re

import pytest
import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.serving.model_server import TeacherServer
from swift_kd_plugin.serving.scoring_routes import Sequence
from swift_kd_plugin.serving.transport import Limits
from tests.launching.commands import free_port
from tests.teacher.fake_vllm import VOCABULARY, log_prob, serve

FAST = Limits(timeout=0.5, attempts=3, pause=0.01)
K = 4


def make_sequences(count: int = 5, seed: int = 0) -> list[Sequence]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(VOCABULARY) for _ in range(rng.randint(6, 40))]
        made.append(Sequence(ids, sorted(rng.sample(range(1, len(ids)), 4))))
    return made


def connect(teacher, topk: int = K, limits: Limits = FAST, **settings) -> TeacherServer:
    server = TeacherServer(teacher.url, topk, limits=limits, **settings)
    server.connect()
    return server


def assert_right(sequences: list[Sequence], found, topk: int = K, shift: int = 0) -> None:
    """The K best tokens of each wanted position by `log_prob`, whose positions a BOS token shifts."""
    for sequence, scores in zip(sequences, found, strict=True):
        table = torch.tensor([[log_prob(p + shift, t) for t in range(VOCABULARY)] for p in sequence.positions])
        torch.testing.assert_close(scores.log_probs, table.topk(topk).values)
        torch.testing.assert_close(table.gather(1, scores.ids), scores.log_probs)
        assert scores.log_probs.dtype == torch.float32
        assert scores.ids.dtype == torch.int64


@pytest.mark.parametrize("swift", [False, True])
@pytest.mark.parametrize("limits", [FAST, Limits(sequences=2, in_flight=3), Limits(entries=1)])
def test_it_returns_the_wanted_positions_of_every_sequence_in_order(swift, limits):
    with serve(swift=swift) as teacher:
        server = connect(teacher, limits=limits)
        sequences = make_sequences(9)
        assert_right(sequences, server.score(sequences))
        assert server.score([]) == []


def test_requests_are_bounded():
    with serve() as teacher:
        server = connect(teacher, limits=Limits(sequences=3, entries=300))
        teacher.bodies.clear()
        server.score(make_sequences(20))
        for body in teacher.bodies:
            assert len(body["prompt"]) <= 3
            assert len(body["prompt"]) == 1 or sum(map(len, body["prompt"])) * (K + 1) <= 300
        assert sum(len(body["prompt"]) for body in teacher.bodies) == 20


@pytest.mark.parametrize("faults", [[500, 500], [429, 503], ["reset"], ["silence"], ["reset", 502]])
def test_it_tries_again(faults):
    with serve() as teacher:
        server = connect(teacher)
        teacher.faults = list(faults)
        sequences = make_sequences(2)
        assert_right(sequences, server.score(sequences))
        assert teacher.faults == []


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([500] * 3, r"no answer in 3 attempts \(status 500: fault 500\)"),
        (["reset"] * 3, r"no answer in 3 attempts \(the connection was refused or broke off\)"),
        (["silence"] * 3, r"no answer in 3 attempts \(silent for 0.5 s\)"),
        ([400], "refused a request with status 400: fault 400"),
        ([302], "refused a request with status 302"),
        (["text"], "answered something that is not JSON"),
    ],
)
def test_it_gives_up_with_one_sentence(faults, message):
    with serve() as teacher:
        server = connect(teacher)
        teacher.faults = list(faults)
        with pytest.raises(KDError, match=message) as raised:
            server.score(make_sequences(1))
        assert teacher.url in str(raised.value)
        assert teacher.faults == []


def swap_a_token(answers) -> None:
    answers[0][0][2] += 1


def drop_entries(answers) -> None:
    for entry in answers[0][1][1:]:
        for token in list(entry)[2:]:
            del entry[token]


def drop_positions(answers) -> None:
    del answers[0][1][3:]


def drop_an_answer(answers) -> None:
    answers.pop()


def say_nothing_of_the_ids(answers) -> None:
    answers[0] = (None, answers[0][1])


@pytest.mark.parametrize("swift", [False, True])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap_a_token, r"scored other tokens than the trainer's from position 2 of \d+"),
        (drop_entries, r"2 log-probabilities where 4 were asked for"),
        (drop_positions, "cannot be used"),
        (drop_an_answer, "cannot be used"),
        (say_nothing_of_the_ids, "cannot be used"),
    ],
)
def test_a_wrong_answer_is_refused(swift, spoil, message):
    with serve(swift=swift) as teacher:
        server = connect(teacher)
        teacher.spoil = spoil
        with pytest.raises(KDError, match=message):
            server.score(make_sequences(2))


def test_minus_infinity_is_a_missing_entry():
    def rule_out(answers):
        for entry in answers[0][1][1:]:
            next(reversed(entry.values()))["logprob"] = -9999.0

    with serve() as teacher:
        server = connect(teacher, topk=VOCABULARY)
        teacher.spoil = rule_out
        (scores,) = server.score(make_sequences(1))
        assert torch.isneginf(scores.log_probs).sum(-1).tolist() == [1] * 4


def test_a_bos_token_that_the_server_adds_is_not_sent_twice():
    with serve(swift=True, front=(7,)) as teacher:
        server = connect(teacher)
        sequences = [Sequence([7, *sequence.ids], sequence.positions) for sequence in make_sequences(3)]
        assert_right(sequences, server.score(sequences))
        with pytest.raises(KDError, match="scored other tokens than the trainer's from position 0"):
            server.score([Sequence([8, 9, 10], [1])])


def test_no_server():
    server = TeacherServer(f"http://user:secret@127.0.0.1:{free_port()}", K, limits=FAST)
    with pytest.raises(KDError, match="gave no answer in 3 attempts") as raised:
        server.connect()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "file:///etc/passwd"])
def test_what_is_no_address(url):
    with pytest.raises(KDError, match="is no address like http://host:8000"):
        TeacherServer(url, K)


def test_an_adapter_is_asked_for_by_name():
    with serve() as teacher:
        connect(teacher, adapter="lora").score(make_sequences(1))
        assert {body["model"] for body in teacher.bodies} == {"lora"}
        with pytest.raises(KDError, match="has no adapter other; it has teacher, lora"):
            connect(teacher, adapter="other")
    with serve(swift=True) as teacher, pytest.raises(KDError, match="--adapters FOLDER --merge_lora true"):
        connect(teacher, adapter="lora")


def test_a_sequence_that_is_too_long_is_not_sent():
    with serve() as teacher:
        server = connect(teacher)
        teacher.bodies.clear()
        with pytest.raises(KDError, match=re.escape("takes 63; start it with --max-model-len 65")):
            server.score([Sequence([1] * 64, [1])])
        assert not teacher.bodies


def test_the_key_is_sent_and_not_shown():
    with serve(faults=[None, 400]) as teacher:
        server = connect(teacher, key="secret")
        with pytest.raises(KDError) as raised:
            server.score(make_sequences(1))
        assert {headers["Authorization"] for headers in teacher.headers} == {"Bearer secret"}
        assert "secret" not in str(raised.value)
