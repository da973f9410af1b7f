"""What teacher servers said of samples, kept in --kd_teacher_cache by the ranks that ask them.

Rows of a server that serves other weights under the same name are refused (`same_server.py`).
"""

import json
from dataclasses import dataclass
from itertools import combinations, zip_longest
from pathlib import Path

import torch
from megatron.core import mpu

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.cache_choice import FLAG, FULL, cache_folder, why_missing
from swift_kd_plugin.host.teacher.cache_keys import OUTPUTS, CacheEntry, cache_entry
from swift_kd_plugin.host.teacher.cache_sharing import wrote_for_others
from swift_kd_plugin.host.teacher.same_server import COMPARED, MOST_APART, Told, distance, say_fixed_text, told
from swift_kd_plugin.host.teacher.server_choice import OF_SERVER, address_of, choose_rows
from swift_kd_plugin.serving.model_server import TeacherServer
from swift_kd_plugin.serving.scoring_routes import ServerScores
from swift_kd_plugin.teacher.cache_codecs import TopKCodec
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.teacher_cache import TeacherCache
from swift_kd_plugin.teacher.teacher_outputs import TopKOutputs

SERVED = "as served"
PADDING = 1024  # ids that a model may have beyond those of its tokenizer


@dataclass
class ServedTeacher:
    """One server's part of a cache.

    Args:
        server: None in a run that only reads.
        left: how many samples are still compared.

    Raises:
        KDError: the server says something else of the fixed text than it did.
    """

    server: TeacherServer | None
    cache: TeacherCache
    left: int = COMPARED

    def __post_init__(self):
        self._before = {shard.file for shard in self.cache.shards}
        self._told: tuple[Told, Told] = [], []  # of what was compared: before and now
        for shard in self.cache.shards if self.server else ():
            of_shard = json.loads(shard.about)["fixed_text"]
            self._check("a fixed text", shard.file, of_shard, self.cache.about["fixed_text"])

    def choose_compared(self, entries: dict[int, CacheEntry]) -> list[int]:
        """Of samples by number the first that were there before this run, of which the server is asked once more."""
        files = {index: self.cache.file_of(entry.keys[OUTPUTS]) for index, entry in entries.items()}
        chosen = [index for index, file in files.items() if file in self._before] if self.server else []
        del chosen[self.left :]
        self.left -= len(chosen)
        return chosen

    def compare(self, entries: list[CacheEntry], scores: list[ServerScores]) -> None:
        """Raises KDError if the server says something else now of samples that are there."""
        for rows, said in zip(self._told, (map(self.read, entries), scores), strict=True):
            rows += [row for of_sample in said for row in told(of_sample)]
        names = ", ".join(entry.name for entry in entries)
        self._check(names, self.cache.file_of(entries[0].keys[OUTPUTS]), *self._told)

    def _check(self, what: str, file: Path, before: Told, now: Told) -> None:
        if (apart := distance(before, now)) > MOST_APART:
            folder = self.cache.folder
            raise KDError(
                f"the teacher server {self.server.name} says something else of {what} than when {file} was written "
                f"({apart:.2f} nats apart, rounding stays below {MOST_APART}): it serves other weights as "
                f"{self.server.model}; give another {FLAG}, or clear that teacher (swift-kd cache clear "
                f"{folder.parent} {folder.name})."
            )

    def read(self, entry: CacheEntry) -> ServerScores:
        token_ids = torch.tensor(entry.token_ids, dtype=torch.long)
        return ServerScores(*self._codec.decode([self.cache.read(entry.keys[OUTPUTS])], token_ids).rows)

    def add(self, entry: CacheEntry, scores: ServerScores) -> None:
        """Raises KDError if a full shard cannot be written, or an id lies beyond every vocabulary."""
        if len(scores.ids) and (highest := scores.ids.max().item()) >> self._codec.bits:
            raise KDError(
                f"the teacher server {self.server.name} names the token id {highest}, and the tokenizer has "
                f"{self.cache.identity.settings['vocabulary']}; serve a teacher with the student's tokenizer."
            )
        outputs = TopKOutputs((scores.log_probs, scores.ids), torch.tensor(entry.token_ids))
        self.cache.add(entry.keys[OUTPUTS], self._codec.encode(outputs))

    @property
    def _codec(self) -> TopKCodec:
        settings = self.cache.identity.settings
        return TopKCodec(**settings | {"vocabulary": settings["vocabulary"] + PADDING})


class ServerCache:
    """In front of the servers of a run, on a rank that asks them.

    Args:
        configs: of all servers, with `url` and `adapter`.
        servers: connected; none in a run that only reads.
        rank: of this process.

    Raises:
        KDError: a shard is damaged; a server is not the one whose rows are there; a run that only reads finds nothing,
            or rows that may be another server's.
    """

    def __init__(self, args, template, configs: list, servers: list[TeacherServer], rank: int):
        self._rank = rank
        self.mode, self.folder = args.kd_teacher_cache_mode, cache_folder(args)
        self.read = self.scored = 0
        self._teachers = [
            self._open(args.gkd_logits_topk, template, config, server, alone=len(configs) == 1)
            for config, server in zip_longest(configs, servers)
        ]
        self._check_names()
        if self.mode != "read":
            for teacher in self._teachers:
                teacher.cache.check_writable()

    def _open(self, topk: int, template, config, server: TeacherServer | None, alone: bool) -> ServedTeacher:
        settings = {"k": topk, "vocabulary": len(template.tokenizer), "temperature": 1.0}
        adapters = (config.adapter,) if config.adapter else ()
        of_model = {"adapters": adapters, "bits": FULL, "dtype": SERVED, "codec": "topk", "settings": settings}
        about = {"template": template.template_meta.template_type, "url": address_of(config.url)}
        if server is None:
            identity = choose_rows(self.folder, config, of_model, alone)
            return ServedTeacher(None, TeacherCache(self.folder, identity, about, self._rank))
        identity = CacheIdentity(OF_SERVER + server.model, **of_model)
        about |= {"teacher": f"{server.model} behind {server.name}", "fixed_text": say_fixed_text(server, template)}
        cache = TeacherCache(self.folder, identity, about, self._rank)
        return ServedTeacher(server, cache)

    def _check_names(self) -> None:
        """Raises KDError if two servers that are not the same have one name, by which their entries are known."""
        for one, other in combinations((teacher for teacher in self._teachers if teacher.server), 2):
            if one.cache.identity == other.cache.identity:
                apart = distance(*(teacher.cache.about["fixed_text"] for teacher in (one, other)))
                if apart > MOST_APART:
                    raise KDError(
                        f"the teacher servers {one.server.name} and {other.server.name} both call their model "
                        f"{one.server.model} and say different things ({apart:.2f} nats apart), so that {FLAG} cannot "
                        "keep them apart; serve them under different names (--served-model-name)."
                    )

    def fill_in(
        self, results: list[ServerScores], chosen: list[list[int]], samples: list[KDSample], views: list[dict]
    ) -> list[list[int]]:
        """Puts what is there into its place. All ranks that ask call it together.

        Args:
            results: of each sample.
            chosen: which samples go to each server.
            views: of the teacher, with `input_ids` and `labels`.

        Returns:
            Of each server the samples that it must be asked for: those that are not there, and a few to compare.
        """
        self._entries = {
            index: cache_entry({OUTPUTS: teacher.cache.identity.digest}, samples[index], views[index])
            for teacher, indices in zip(self._teachers, chosen, strict=True)
            for index in indices
        }
        if self.mode == "write":
            self._compared = [self._choose_compared(*pair) for pair in enumerate(chosen)]
            return chosen
        self._look_again(chosen)
        absent = [self._absent(number, indices) for number, indices in enumerate(chosen)]
        there = [sorted(set(indices) - set(lacking)) for indices, lacking in zip(chosen, absent, strict=True)]
        for teacher, indices in zip(self._teachers, there, strict=True):
            for index in indices:
                results[index] = teacher.read(self._entries[index])
                self.read += 1
        self._compared = [self._choose_compared(*pair) for pair in enumerate(there)]
        return [lacking + compared for lacking, compared in zip(absent, self._compared, strict=True)]

    def _choose_compared(self, number: int, indices: list[int]) -> list[int]:
        return self._teachers[number].choose_compared({index: self._entries[index] for index in indices})

    def _absent(self, number: int, indices: list[int]) -> list[int]:
        cache = self._teachers[number].cache
        return [index for index in indices if self._entries[index].keys[OUTPUTS] not in cache]

    def _look_again(self, chosen: list[list[int]]) -> None:
        """Takes up what others have written. Raises KDError where something is not there and nothing may be asked."""
        caches = [teacher.cache for teacher in self._teachers]
        absent = [self._absent(number, indices) for number, indices in enumerate(chosen)]
        keys = [self._entries[index].keys[OUTPUTS] for indices in absent for index in indices]
        others_wrote = self.mode != "read" and wrote_for_others(caches, keys, mpu.get_data_parallel_group())
        if keys or others_wrote:
            for cache in caches:
                cache.refresh()
        for number, indices in enumerate(chosen) if self.mode == "read" else ():
            if missing := self._absent(number, indices):
                raise KDError(why_missing(self.folder, caches[number], self._entries[missing[0]]))

    def keep(self, number: int, indices: list[int], results: list[ServerScores]) -> None:
        """What a server, by its number, has just said. Raises KDError if it is not what it said before, or cannot be
        written."""
        teacher, compared = self._teachers[number], self._compared[number]
        if compared:
            teacher.compare([self._entries[index] for index in compared], [results[index] for index in compared])
        for index in indices:
            if index in compared and self.mode != "write":
                results[index] = teacher.read(self._entries[index])
            else:
                teacher.add(self._entries[index], results[index])
                self.scored += 1

    def flush(self) -> None:
        for teacher in self._teachers:
            teacher.cache.flush()
