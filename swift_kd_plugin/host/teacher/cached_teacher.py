"""A teacher whose rows are kept in --kd_teacher_cache: what is there is read, what is not is asked and written.

A sample's entry is made of whole rows in sample order, so that any layout, order and packing can read what any other
has written. What the losses take and each inner layer that is matched are parts of their own, with entries of their
own: another run reads those that it needs. Of the ranks that share their samples (TP x PP x CP) one writes a part, on
the pipeline stage where the teacher says it, and each reads the rows of its own tokens where the student needs them.
"""

from contextlib import nullcontext

import torch
from megatron.core import mpu
from swift.utils import get_logger
from torch import Tensor
from torch import distributed as dist

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.cache_choice import (
    FLAG,
    cache_folder,
    identity_of_layer,
    make_identity,
    why_missing,
    why_no_layer,
    why_nothing,
)
from swift_kd_plugin.host.teacher.cache_keys import OUTPUTS, CacheEntry, cache_entry
from swift_kd_plugin.host.teacher.cache_sharing import say_use, wrote_for_others
from swift_kd_plugin.host.teacher.local_teacher import (
    LocalTeacher,
    RowsOf,
    output_parameters,
    store_outputs,
    wanted_here,
)
from swift_kd_plugin.host.teacher.output_layer import load_output_layer, read_teacher_config
from swift_kd_plugin.host.teacher.parallel_groups import any_of
from swift_kd_plugin.host.teacher.teacher_features import layers_of, store_features
from swift_kd_plugin.teacher.cache_codecs import Codec, HiddenCodec, LayerCodec, TopKCodec
from swift_kd_plugin.teacher.teacher_cache import TeacherCache
from swift_kd_plugin.teacher.teacher_outputs import (
    HiddenOutputs,
    LogitsOutputs,
    TeacherOutputs,
    TokenRows,
    TopKOutputs,
)

logger = get_logger()
ENTRIES = "cache_entries"  # of a micro-batch
Said = dict[int, TokenRows]  # by part


class CachedTeacher:
    """In front of a local teacher. All ranks make it together, before any model is loaded.

    Raises:
        KDError: the teacher's files cannot be read, a shard is damaged, or a run that only reads finds nothing of this
            teacher, or of one of its layers.
    """

    def __init__(self, args, template, inner: LocalTeacher):
        self.inner, self.mode, self.place = inner, args.kd_teacher_cache_mode, cache_folder(args)
        self.reads_only = self.mode == "read"
        self.runs_model = inner.runs_model and not self.reads_only
        self.outputs: type[TeacherOutputs] = HiddenOutputs if args.gkd_logits_topk is None else TopKOutputs
        self.folder = args.model_info.model_dir if args._teacher_use_disable_adapter else args.teacher_model_dir
        self.config = read_teacher_config(args, self.folder)
        self.identity = identity = make_identity(args, self.config, self.folder)
        about = {"teacher": str(self.folder), "template": template.template_meta.template_type}
        self.pairs = args.kd_feature_pairs or []
        parts = {OUTPUTS: identity}
        parts |= {layer: identity_of_layer(identity, self.config.hidden_size, layer) for _, layer in self.pairs}
        self.caches = {part: TeacherCache(self.place, one, about, dist.get_rank()) for part, one in parts.items()}
        self.read = self.scored = 0
        for part, cache in self.caches.items():
            if not self.reads_only:
                cache.check_writable()
            elif not len(cache):
                raise KDError((why_no_layer if part else why_nothing)(self.place, cache.identity))

    def decide(self, trainer: HostTrainer) -> None:
        if self.reads_only:
            trainer.teacher_config = self.config
            logger.info(f"Of the teacher its {self.outputs.title} are read; it is not loaded.")
        else:
            self.inner.decide(trainer)
            if self.inner.outputs is LogitsOutputs:
                raise KDError(
                    f"{FLAG} stores hidden states or most probable tokens, and of this teacher whole logits are kept "
                    "(the log says why); give --kd_topk."
                )
        layers = ", ".join(f"{part} ({len(cache):,})" for part, cache in self.caches.items() if part != OUTPUTS)
        logger.info(
            f"{FLAG} {self.place} has {len(self.caches[OUTPUTS]):,} samples of this teacher ({self.outputs.title})"
            f"{layers and f', and of its layers {layers}'}."
        )
        self._choose_parts(trainer)
        of_layers = LayerCodec(self.config.hidden_size, self.config.params_dtype)
        self.codecs = dict.fromkeys(self.caches, of_layers) | {OUTPUTS: self._make_codec(trainer)}

    def _choose_parts(self, trainer: HostTrainer) -> None:
        """Keeps those that this rank reads, where the student needs them, or writes, where the teacher says them."""
        student, teacher = trainer.unwrapped_models, trainer.teacher_models or trainer.unwrapped_models
        outputs = {OUTPUTS} if on_last_stage() else set()
        here = layers_of(student).keys()
        self.read_here = outputs | {of_teacher for of_student, of_teacher in self.pairs if of_student in here}
        self.written_here: set[int] = set()
        if not self.reads_only and is_first_of_stage():
            self.written_here = outputs | ({layer for _, layer in self.pairs} & layers_of(teacher).keys())
        self.caches = {part: cache for part, cache in self.caches.items() if part in self.read_here | self.written_here}

    def _make_codec(self, trainer: HostTrainer) -> Codec:
        settings, self.head = self.identity.settings, None
        if self.outputs is TopKOutputs:
            return TopKCodec(**settings)
        if on_last_stage():
            loaded = trainer.teacher_models
            self.head = (
                output_parameters(loaded[-1])[0]
                if loaded
                else load_output_layer(
                    self.config, self.folder, trainer.args.kd_teacher_adapters, torch.cuda.current_device()
                )
            )
        return HiddenCodec(settings["hidden"], self.config.params_dtype, () if self.head is None else (self.head,))

    @property
    def head_bytes(self) -> int:
        """Of the output layer that meets the rows on this rank."""
        return 0 if self.head is None else self.head.numel() * self.head.element_size()

    @property
    def feature_bytes(self) -> int:
        if not self.reads_only:
            return self.inner.feature_bytes
        return len(self.read_here - {OUTPUTS}) * self.config.hidden_size * self.config.params_dtype.itemsize

    def needs(self, samples: list[KDSample], views: list[dict]) -> dict[str, object]:
        digests = {part: cache.identity.digest for part, cache in self.caches.items()}
        entries = [cache_entry(digests, sample, view) for sample, view in zip(samples, views, strict=True)]
        return {ENTRIES: entries, **self.inner.needs(samples, views)}

    def score(self, trainer: HostTrainer, batches: list[dict], vp_stage: int | None = None) -> None:
        entries = [batch.pop(ENTRIES) for batch in batches]
        asked = {index: batches[index] for index in self._missing(trainer, entries)}
        self.inner.check_bits(trainer, batches, bool(asked), vp_stage)
        with self.inner.asked(trainer, asked, vp_stage) if asked else nullcontext() as rows_of:
            for index, batch in enumerate(batches):
                if index in asked:
                    self._hand_out(trainer, self._ask(trainer, index, entries[index], rows_of), batch)
                else:
                    self._hand_out(trainer, self._read(entries[index]), batch)
        if asked and self.inner.features:
            self.inner.features.hand_over(list(asked.values()))

    def _missing(self, trainer: HostTrainer, entries: list[list[CacheEntry]]) -> list[int]:
        """The micro-batches that are scored, the same on all ranks that must score together."""
        group = trainer._get_rollout_group()
        if self.mode == "write":
            lacking = [any(entry.keys for entry in batch) for batch in entries]
        else:
            self._look_again(trainer, entries)
            lacking = [bool(self._absent([batch])) for batch in entries]
        # Experts of several replicas of the model are called together.
        args = trainer.args
        beyond_tensor_ranks = args.expert_tensor_parallel_size > args.tensor_model_parallel_size
        together = None if args.expert_model_parallel_size > 1 or beyond_tensor_ranks else group
        here = torch.tensor(lacking, device=trainer.device).int()
        dist.all_reduce(here, dist.ReduceOp.MAX, group=together)
        return here.nonzero()[:, 0].tolist()

    def _look_again(self, trainer: HostTrainer, entries: list[list[CacheEntry]]) -> None:
        """Takes up what others have written, where something is not there. Raises KDError if nothing may be scored."""
        if self._absent(entries):
            self._refresh()
        if self.reads_only:
            if absent := self._absent(entries):
                part, entry = absent[0]
                raise KDError(why_missing(self.place, self.caches[part], entry))
        elif any_of(self._written_for_others(trainer, entries), trainer._get_rollout_group(), trainer.device):
            self._refresh()

    def _refresh(self) -> None:
        for cache in self.caches.values():
            cache.refresh()

    def _absent(self, entries: list[list[CacheEntry]]) -> list[tuple[int, CacheEntry]]:
        """What this rank reads or writes and is not there."""
        return [
            (part, entry)
            for batch in entries
            for entry in batch
            for part, key in entry.keys.items()
            if key not in self.caches[part]
        ]

    def _written_for_others(self, trainer: HostTrainer, entries: list[list[CacheEntry]]) -> bool:
        """Whether a writer here brought to the disk what another rank misses.

        The other ranks of a replica see what is on the disk alone, and another epoch brings a sample to another
        replica, whose writer has not seen it.
        """
        if not self.written_here:
            return False
        alone = dist.get_world_size(trainer._get_rollout_group()) == 1
        there = {part: cache if alone else cache.on_disk for part, cache in self.caches.items()}
        keys = [pair for batch in entries for entry in batch for pair in entry.keys.items()]
        missed = [key for part, key in keys if part in self.written_here and key not in there[part]]
        caches = [self.caches[part] for part in self.written_here]
        return wrote_for_others(caches, missed, mpu.get_data_parallel_group())

    def _ask(self, trainer: HostTrainer, index: int, entries: list[CacheEntry], rows_of: RowsOf) -> Said:
        """All rows of a micro-batch, in sample order, which are written on their way."""
        counts = [len(entry.token_ids) for entry in entries]
        outputs, layers = rows_of(index, torch.arange(sum(counts), device=trainer.device))
        said: Said = layers if outputs is None else {OUTPUTS: outputs, **layers}
        for part in said.keys() & self.written_here:
            values = {name: value.split(counts) for name, value in self.codecs[part].encode(said[part]).items()}
            for number, entry in enumerate(entries):
                if entry.keys:
                    self.caches[part].add(entry.keys[part], {name: parts[number] for name, parts in values.items()})
        self.scored += sum(bool(entry.keys) for entry in entries)
        return said

    def _read(self, entries: list[CacheEntry]) -> Said:
        """Of a micro-batch that is there what this rank needs of the same, on the CPU."""
        there = [entry for entry in entries if entry.keys]
        self.read += len(there)
        token_ids = torch.tensor([token for entry in there for token in entry.token_ids], dtype=torch.long)
        return {
            part: self.codecs[part].decode([self.caches[part].read(entry.keys[part]) for entry in there], token_ids)
            for part in self.read_here
        }

    def _hand_out(self, trainer: HostTrainer, said: Said, batch: dict) -> None:
        """Adds to a micro-batch what is said of the tokens that lie on this rank."""
        wanted = wanted_here(batch)
        here = {part: _rows_of(all_rows, wanted, trainer.device) for part, all_rows in said.items()}
        outputs = here.pop(OUTPUTS, None)
        batch["teacher_outputs"] = None if outputs is None else store_outputs(trainer, outputs)
        if self.pairs:
            pinned = trainer.args.kd_teacher_payload_device == "cpu"
            batch["teacher_features"] = store_features(self.pairs, here, pinned)

    def flush(self) -> None:
        for cache in self.caches.values():
            cache.flush()

    def report(self, trainer: HostTrainer) -> None:
        say_use(trainer, *((self.read, self.scored) if on_last_stage() and is_first_of_stage() else (0, 0)))


def on_last_stage() -> bool:
    """Of a pipeline, where the loss needs the rows."""
    return mpu.is_pipeline_last_stage(ignore_virtual=True)


def is_first_of_stage() -> bool:
    """Of the ranks of a pipeline stage that share their samples, the one that writes."""
    return not (mpu.get_tensor_model_parallel_rank() or mpu.get_context_parallel_rank())


def _rows_of(all_rows: TokenRows, wanted: Tensor, device) -> TokenRows:
    wanted = wanted.to(all_rows.token_ids.device)
    return all_rows.map(lambda rows: rows[wanted].to(device))
