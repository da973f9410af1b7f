"""A teacher behind a server: token ids go in, the K most probable tokens at each wanted position come out."""

import re
from concurrent.futures import ThreadPoolExecutor

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.serving.scoring_routes import (
    Sequence,
    ServerAnswer,
    ServerScores,
    SwiftRoute,
    VllmRoute,
    read_scores,
)
from swift_kd_plugin.serving.transport import Endpoint, Limits, Refused, Unavailable

# Ids that every vocabulary has.
PROBE = Sequence([2, 1, 3], [1, 2])
NO_ROUTE = (404, 405)
# What a tokenizer puts in front of every text has this many tokens at most; a chat template has more.
BOS_TOKENS = 2
SERVER_ADVICE = (
    (
        r"logprobs",
        "start it with --max-logprobs {topk} (vLLM) or --max_logprobs {topk} (swift deploy), or ask for less",
    ),
    (r"context length|max_model_len|too long", "start it with a larger --max-model-len, or lower --max_length"),
    (r"out of vocabulary|vocab", "the teacher must have the student's tokenizer"),
    (r"API key|[Uu]nauthorized|authenticat", "give its key in the environment variable SWIFT_KD_TEACHER_API_KEY"),
)


class TeacherServer:
    """One server and one teacher on it; to be connected before it is asked.

    Args:
        url: its address, without a route.
        topk: how many tokens to ask for at each position.
        adapter: name of a LoRA adapter that the server was started with.
        key: the server's API key.
        flag: where the user gave the address.
    """

    def __init__(
        self,
        url: str,
        topk: int,
        adapter: str | None = None,
        key: str | None = None,
        limits: Limits | None = None,
        flag: str = "--teacher_model_server",
    ):
        self.limits = limits or Limits()
        self.endpoint = Endpoint(url, self.limits, key, flag)
        self.topk, self.adapter = topk, adapter
        self.name = self.endpoint.name
        self.max_length: int | None = None

    def connect(self) -> dict[int, str]:
        """Finds the route that scores token ids, and tries it.

        Returns:
            Some token ids and the server's texts for them, to compare tokenizers by.

        Raises:
            KDError: no route scores token ids here, the adapter is unknown, or the server may not tell `topk` tokens.
        """
        if self.speaks_swift():
            answer = self._connect_swift()
            self.model = self.choose_model()
        else:
            self.model = self.choose_model()
            self.route = VllmRoute(self.model)
            answer = self._probe(self.topk)
        entries = [item for position in answer.entries[1:] for item in position.items()]
        return {int(token): entry.get("decoded_token") or "" for token, entry in entries}

    def score(self, sequences: list[Sequence]) -> list[ServerScores]:
        """The scores of each sequence; what the server scored is compared with what was sent, id by id.

        Raises:
            KDError: the server cannot be reached, refuses, or scored other tokens.
        """
        self._check_sequences(sequences)
        batches = list(self._cut(sequences))
        with ThreadPoolExecutor(max_workers=self.limits.in_flight) as pool:
            try:
                return [scores for batch in pool.map(self._score_batch, batches) for scores in batch]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def needs_messages(self) -> bool:
        """Whether sequences must come with their `request`, because the server templates by itself."""
        return isinstance(self.route, SwiftRoute) and self.route.templates

    def speaks_swift(self) -> bool:
        """Whether it has the route of `swift deploy`. Raises KDError if it cannot be asked."""
        try:
            return self.endpoint.post(SwiftRoute.path, {"infer_requests": []}) == []
        except Refused as error:
            if error.status in NO_ROUTE:
                return False
            raise self.advise(error) from error

    def _connect_swift(self) -> ServerAnswer:
        """With --use_chat_template false the ids come back as they are, else with the template around them."""
        if self.adapter:
            raise KDError(
                f"The teacher server {self.name} is swift deploy, whose /infer/ scores without adapters (asked for: "
                f"{self.adapter}); start it with --adapters FOLDER --merge_lora true and drop the name here, or use "
                "vllm serve with --lora-modules."
            )
        self.route = SwiftRoute()
        ids = self._probe(1).ids
        start = next((n for n in range(len(ids)) if ids[n : n + len(PROBE.ids)] == PROBE.ids), None)
        if start is None:
            raise KDError(f"The teacher server {self.name} did not score the token ids that it was sent.")
        self.route = SwiftRoute(ids[:start], templates=start > BOS_TOKENS)
        return self._probe(self.topk)

    def choose_model(self) -> str:
        """The name of the adapter, or of the only model of a vLLM server; also finds `max_length`.

        Raises:
            KDError: it has no such adapter, or cannot be asked.
        """
        try:
            models = self.endpoint.get("/v1/models")["data"]
        except Refused as error:
            raise self.advise(error) from error
        names = [model["id"] for model in models]
        if self.adapter and self.adapter not in names:
            raise KDError(f"The teacher server {self.name} has no adapter {self.adapter}; it has {', '.join(names)}.")
        self.max_length = models[0].get("max_model_len")
        return self.adapter or names[0]

    def score_alone(self, ids: list[int]) -> ServerScores:
        """Of each token after the first, with nothing in front of them but what the server itself puts there."""
        answer = self._probe(self.topk, sequence=Sequence(ids, list(range(1, len(ids)))))
        start = next(n for n in range(len(answer.ids)) if answer.ids[n : n + len(ids)] == ids)
        return read_scores(answer, list(range(start + 1, start + len(ids))), self.topk)

    def _probe(self, topk: int, attempts: int | None = None, sequence: Sequence = PROBE) -> ServerAnswer:
        route = SwiftRoute() if self.needs_messages else self.route
        try:
            (answer,) = route.read(self.endpoint.post(route.path, route.body([sequence], topk), attempts))
        except Refused as error:
            raise self.advise(error) from error
        except Unavailable as error:
            if isinstance(route, SwiftRoute) and topk > 1 and error.status == 500:
                # swift deploy gives no reason, but the same request with topk 1 was just answered.
                raise KDError(
                    f"The teacher server {self.name} does not tell {topk} tokens a position; start swift deploy with "
                    f"--max_logprobs {topk}, or ask for less with --kd_topk."
                ) from error
            raise
        return answer

    def works(self) -> bool:
        """Whether it scores a short sequence now."""
        try:
            self._probe(self.topk, attempts=1)
        except KDError:
            return False
        return True

    @property
    def description(self) -> str:
        """What it scores and how, once it is connected."""
        what = "token ids" + (f" with the adapter {self.adapter}" if self.adapter else "")
        if self.needs_messages:
            what = "messages that it templates by itself, each compared with the trainer's token ids,"
        return f"The teacher server {self.name} scores {what} through {self.route.name}."

    def _check_sequences(self, sequences: list[Sequence]) -> None:
        longest = max((len(sequence.ids) for sequence in sequences), default=0)
        # The server always writes one token more.
        if self.max_length is not None and longest >= self.max_length:
            raise KDError(
                f"A sequence has {longest} tokens, and the teacher server {self.name} takes {self.max_length - 1}; "
                f"start it with --max-model-len {longest + 1} or lower --max_length."
            )

    def _cut(self, sequences: list[Sequence]):
        batch, entries = [], 0
        for sequence in sequences:
            more = len(sequence.ids) * (self.topk + 1)
            if batch and (len(batch) == self.limits.sequences or entries + more > self.limits.entries):
                yield batch
                batch, entries = [], 0
            batch.append(sequence)
            entries += more
        if batch:
            yield batch

    def _score_batch(self, batch: list[Sequence]) -> list[ServerScores]:
        try:
            reply = self.endpoint.post(self.route.path, self.route.body(batch, self.topk))
        except Refused as error:
            raise self.advise(error) from error
        except Unavailable as error:
            if error.status == 500 and isinstance(self.route, SwiftRoute):
                raise self._explain_failure(batch, error) from error
            raise
        try:
            answers = self.route.read(reply)
            return [self._read(answer, sequence) for answer, sequence in zip(answers, batch, strict=True)]
        except KDError:
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise KDError(f"The teacher server {self.name} gave an answer that cannot be used: {error}.") from error

    def _read(self, answer: ServerAnswer, sequence: Sequence) -> ServerScores:
        length = len(sequence.ids)
        # A template may add an end; what follows a token does not change its scores.
        if answer.ids[:length] != sequence.ids:
            pairs = zip(answer.ids, sequence.ids, strict=False)
            place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(answer.ids), length))
            raise KDError(
                f"The teacher server {self.name} scored other tokens than the trainer's from position {place} of "
                f"{length}; start it as swift deploy --use_chat_template false, which takes token ids as they are."
            )
        return read_scores(answer, sequence.positions, self.topk)

    def advise(self, error: Refused) -> KDError:
        """The error with what to do about it, if that is known."""
        advice = next((text for pattern, text in SERVER_ADVICE if re.search(pattern, error.reason)), None)
        if advice is None:
            return error
        return KDError(f"{str(error).removesuffix('.')}; {advice.format(topk=self.topk)}.")

    def _explain_failure(self, batch: list[Sequence], error: Unavailable) -> KDError:
        """swift deploy answers 500 without a reason, also to what will never work."""
        if not self.works():
            return error
        longest = max(len(sequence.ids) for sequence in batch)
        highest = max(max(sequence.ids) for sequence in batch)
        return KDError(
            f"The teacher server {self.name} works but answers 500 to a sequence of up to {longest} tokens with ids up "
            f"to {highest}; its log says why: mostly --vllm_max_model_len is below {longest + 1}, or its vocabulary "
            "is smaller than the student's."
        )


def check_same_texts(tokenizer, texts: dict[int, str], server: str, whose: str = "the student") -> None:
    """Raises KDError when most of a server's texts for token ids are not those of `whose` tokenizer.

    Texts that are empty or hold a replacement character are parts of a letter, and leading blanks depend on the
    decoder: neither is compared.
    """
    pairs = [(token, text.strip(), tokenizer.decode([token]).strip()) for token, text in texts.items()]
    pairs = [
        (token, server_text, local_text)
        for token, server_text, local_text in pairs
        if server_text and local_text and "\ufffd" not in server_text + local_text
    ]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    if 2 * len(different) > len(pairs):
        token, server_text, local_text = different[0]
        raise KDError(
            f"The teacher server {server} has another tokenizer than {whose}: id {token} is {server_text!r} to it and "
            f"{local_text!r} to {whose}; token ids that are exchanged need one tokenizer."
        )
