"""A teacher behind `--teacher_model_server`: who asks which server, and how every rank gets its scores."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from megatron.core import mpu
from swift.rlhf_trainers.gkd_helpers import (
    TeacherServerConfig,
    parse_teacher_model_server,
    route_samples_to_teachers,
)
from swift.utils import get_logger, json_parse_to_dict
from torch import distributed as dist

from swift_kd_plugin.data.columns import MEDIA_COLUMNS
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.encode_views import teacher_requests
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.response_labels import IGNORED, trained_tokens
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.cache_sharing import say_use
from swift_kd_plugin.host.teacher.local_teacher import store_outputs, wanted_here
from swift_kd_plugin.host.teacher.server_cache import ServerCache
from swift_kd_plugin.serving.model_server import TeacherServer, check_same_texts
from swift_kd_plugin.serving.scoring_routes import Sequence, ServerScores
from swift_kd_plugin.serving.transport import KEY_VARIABLE
from swift_kd_plugin.teacher.teacher_outputs import TeacherOutputs, TopKOutputs

logger = get_logger()
ENTRY_KEYS = {"url", "tags", "adapter"}


@dataclass
class TaggedServer(TeacherServerConfig):
    """One entry of `--teacher_model_server`; ms-swift's parser knows no `adapter` and drops it."""

    adapter: str | None = None


def parse_servers(value: str) -> list[TaggedServer]:
    """One address, or a JSON list of {"url", "tags", "adapter"}.

    Raises:
        KDError: an entry has another key, or is refused by ms-swift.
    """
    try:
        configs = parse_teacher_model_server(value)
    except ValueError as error:
        raise KDError(f"--{str(error).rstrip('.')}.") from error
    entries = json_parse_to_dict(value) if value.strip().startswith("[") else [{}]
    if unknown := sorted({key for entry in entries for key in entry} - ENTRY_KEYS):
        raise KDError(f"--teacher_model_server: {unknown[0]!r} is not known in an entry; it takes url, tags, adapter.")
    return [
        TaggedServer(config.url, config.tags, entry.get("adapter"))
        for config, entry in zip(configs, entries, strict=True)
    ]


class ServerTeacher:
    """The servers of --teacher_model_server, connected and checked when this is made, which all ranks do together; a
    run that only reads a cache connects none.

    Raises:
        KDError: one of them cannot be reached, scores no token ids, or has another tokenizer than the student; the
            cache cannot be used (see `ServerCache`).
    """

    runs_model = reads_only = False
    feature_bytes = 0
    outputs: type[TeacherOutputs] = TopKOutputs

    def __init__(self, args, template):
        self.configs = parse_servers(args.teacher_model_server)
        self.servers: list[TeacherServer] = []
        self.cache: ServerCache | None = None
        sentence = None
        if asks_servers():
            try:
                if args.kd_teacher_cache_mode != "read":
                    topk, tokenizer = args.gkd_logits_topk, template.tokenizer
                    self.servers = [connect(config, topk, tokenizer) for config in self.configs]
                if args.kd_teacher_cache:
                    self.cache = ServerCache(args, template, self.configs, self.servers, dist.get_rank())
            except KDError as error:
                sentence = str(error)
        sentences: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(sentences, sentence)
        if sentence := next(filter(None, sentences), None):
            raise KDError(sentence)

    def decide(self, trainer: HostTrainer) -> None:
        args = trainer.args
        if args.kd_teacher_cache_mode == "read":
            logger.info(
                f"Of the teacher its {self.outputs.title} are read from {args.kd_teacher_cache}; no server is asked."
            )
        else:
            logger.info(f"Of the teacher its {self.outputs.title} are kept.")

    def needs(self, samples: list[KDSample], views: list[dict]) -> dict[str, object]:
        return {"samples": samples, "teacher_views": [dict(view) for view in views]}

    def score(self, trainer: HostTrainer, batches: list[dict], vp_stage: int | None = None) -> None:
        views = [batch.pop("teacher_views") for batch in batches]
        samples = [sample for batch in batches for sample in batch.pop("samples")]
        scores = iter(self._score_together(trainer, samples, [view for group in views for view in group]))
        for batch, group in zip(batches, views, strict=True):
            outputs = _joined([next(scores) for _ in group], group)
            wanted = wanted_here(batch).to(outputs.token_ids.device)
            batch["teacher_outputs"] = store_outputs(
                trainer, outputs.map(lambda rows, wanted=wanted: rows[wanted].to(trainer.device))
            )

    def flush(self) -> None:
        if self.cache:
            self.cache.flush()

    def report(self, trainer: HostTrainer) -> None:
        if trainer.args.kd_teacher_cache:
            say_use(trainer, *((self.cache.read, self.cache.scored) if self.cache else (0, 0)))

    def _score_together(self, trainer: HostTrainer, samples: list[KDSample], views: list[dict]) -> list[ServerScores]:
        """What the teachers say of every response token of this rank's samples.

        The first rank of each group that shares its samples (TP x PP x CP) asks, the others receive: data-parallel
        ranks parse side by side, and nothing is gathered on one rank. Every rank of the group must call this.

        Args:
            samples: of this rank.
            views: their teacher views with `input_ids` and `labels`, of equal length and not shifted.

        Returns:
            For each sample the scores of its response tokens (labels other than -100) in order, on the CPU.

        Raises:
            KDError: on all ranks of the group, with the sentence of the rank that asked.
        """
        group = trainer._get_rollout_group()
        scores, sentence = [], None
        if dist.get_rank(group) == 0:
            try:
                scores = self._ask(trainer, samples, views)
            except (KDError, ValueError) as error:
                sentence = str(error)
        sentences = [sentence]
        dist.broadcast_object_list(sentences, group_src=0, group=group)
        if sentences[0] is not None:
            raise KDError(sentences[0])
        return _broadcast(
            scores, [len(trained_tokens(view["labels"])) for view in views], trainer.gkd_logits_topk, group
        )

    def _ask(self, trainer: HostTrainer, samples: list[KDSample], views: list[dict]) -> list[ServerScores]:
        """Each sample's scores: from the cache, or from the server of its tag, all servers at once; one without a
        response is not sent."""
        sequences = [_sequence(view) for view in views]
        routes = route_samples_to_teachers(samples, self.configs, trainer.args.teacher_tag_key)
        asked = [[index for index in routes[number] if sequences[index].positions] for number in range(len(routes))]
        topk = trainer.gkd_logits_topk
        results = [ServerScores(torch.zeros(0, topk), torch.zeros(0, topk, dtype=torch.long))] * len(samples)
        if self.cache:
            asked = self.cache.fill_in(results, asked, samples, views)

        def ask_one(server: TeacherServer, indices: list[int]) -> list[ServerScores]:
            sent = _prepare(server, [samples[i] for i in indices], [sequences[i] for i in indices], trainer.template)
            return server.score(sent)

        failed = None
        with ThreadPoolExecutor(len(self.configs)) as pool:
            answers = [pool.submit(ask_one, *pair) for pair in zip(self.servers, asked, strict=False)]
            for number, (indices, answer) in enumerate(zip(asked, answers, strict=False)):
                try:
                    for index, of_sample in zip(indices, answer.result(), strict=True):
                        results[index] = of_sample
                    if self.cache:
                        self.cache.keep(number, indices, results)
                except KDError as error:  # what the others say is kept first
                    failed = failed or error
        if failed:
            raise failed
        return results


def asks_servers() -> bool:
    """Whether this rank is the first of those that share their samples (TP x PP x CP), which asks for all of them."""
    ranks = mpu.get_tensor_model_parallel_rank(), mpu.get_pipeline_model_parallel_rank()
    return not any((*ranks, mpu.get_context_parallel_rank()))


def connect(config: TaggedServer, topk: int, tokenizer) -> TeacherServer:
    """Raises KDError if it cannot be reached, scores no token ids, or has another tokenizer."""
    server = TeacherServer(config.url, topk, config.adapter, os.environ.get(KEY_VARIABLE))
    check_same_texts(tokenizer, server.connect(), server.name)
    logger.info(server.description)
    return server


def _joined(scores: list[ServerScores], views: list[dict]) -> TopKOutputs:
    """The scores of a micro-batch's samples, one after the other, on the CPU."""
    rows = torch.cat([score.log_probs for score in scores]), torch.cat([score.ids for score in scores])
    token_ids = [token for view in views for token in trained_tokens(view["labels"])]
    return TopKOutputs(rows, torch.tensor(token_ids, dtype=torch.long))


def _sequence(view: dict) -> Sequence:
    """Ends with the last response token: padding and what follows the response have no say in it."""
    positions = [position for position, label in enumerate(view["labels"]) if label != IGNORED]
    return Sequence(list(view["input_ids"])[: positions[-1] + 1] if positions else [], positions)


def _prepare(server: TeacherServer, samples: list[KDSample], sequences: list[Sequence], template) -> list[Sequence]:
    """What the server needs beside the token ids. Raises KDError for media or thoughts that it cannot be sent."""
    if server.needs_messages:
        if thinking := next((sample for sample in samples if sample.teacher_thought is not None), None):
            raise KDError(
                f"{thinking.name} has a teacher_thought, which cannot go to the teacher server {server.name}, because "
                "it templates by itself; start it with --use_chat_template false."
            )
        return _with_requests(samples, sequences, template)
    if any(getattr(sample, column) for sample in samples for column in MEDIA_COLUMNS):
        raise KDError(
            f"Samples with images, videos or audio cannot go as token ids to the teacher server {server.name}; "
            "start it as swift deploy with the student's --template and without --use_chat_template false."
        )
    return sequences


def _with_requests(samples: list[KDSample], sequences: list[Sequence], template) -> list[Sequence]:
    """Adds the samples as messages, for a server that templates by itself."""
    requests = [asdict(request) for request in teacher_requests(samples, template)]
    for request in requests:
        for message in request["messages"]:
            if isinstance(message.get("content"), list) and all(isinstance(part, int) for part in message["content"]):
                # A server of ms-swift 4.6 takes a bare list for a list of media.
                message["content"] = {"token_ids": message["content"]}
    return [
        Sequence(sequence.ids, sequence.positions, request)
        for sequence, request in zip(sequences, requests, strict=True)
    ]


def _broadcast(scores: list[ServerScores], counts: list[int], topk: int, group) -> list[ServerScores]:
    """From the group's first rank to all, as two tensors over all samples."""
    device = torch.cuda.current_device()
    total = sum(counts)
    log_probs = torch.empty(total, topk, dtype=torch.float32, device=device)
    ids = torch.empty(total, topk, dtype=torch.long, device=device)
    if scores:
        log_probs.copy_(torch.cat([score.log_probs for score in scores]))
        ids.copy_(torch.cat([score.ids for score in scores]))
    for tensor in (log_probs, ids):
        dist.broadcast(tensor, group_src=0, group=group)
    parts = zip(log_probs.cpu().split(counts), ids.cpu().split(counts), strict=True)
    return [ServerScores(*part) for part in parts]
