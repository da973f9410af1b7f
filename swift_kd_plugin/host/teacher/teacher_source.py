"""Where what a teacher says comes from: one form of outputs for a whole run, and one way to ask."""

from typing import Protocol

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.cached_teacher import CachedTeacher
from swift_kd_plugin.host.teacher.local_teacher import LocalTeacher
from swift_kd_plugin.host.teacher.teacher_server import ServerTeacher
from swift_kd_plugin.teacher.teacher_outputs import TeacherOutputs


class TeacherSource(Protocol):
    """A teacher as the trainer asks it.

    It is made before any model is loaded, which is the time to find that it cannot answer (KDError).
    """

    outputs: type[TeacherOutputs]
    """The form of all that it says, the same on all ranks; known once `decide` was called."""

    runs_model: bool
    """A model on these ranks speaks: ms-swift's trainer says when, as its weights may be the student's."""

    reads_only: bool
    """What it says is on the disk: no teacher is loaded."""

    feature_bytes: int
    """Of a response token's inner layers that this rank keeps, over all tensor-parallel ranks; known as `outputs`."""

    def decide(self, trainer: HostTrainer) -> None:
        """Chooses `outputs`, and says in the log what is kept and why. All ranks call it when models are loaded."""

    def needs(self, samples: list[KDSample], views: list[dict]) -> dict[str, object]:
        """What a micro-batch carries for `score`, by name.

        Args:
            views: the encodings that the teacher sees, not yet collated.
        """

    def score(self, trainer: HostTrainer, batches: list[dict], vp_stage: int | None = None) -> None:
        """Adds `teacher_outputs`, `StoredOutputs` of the tokens that lie on this rank, to every micro-batch; None
        before the last pipeline stage where a model speaks. Where layers are matched also `teacher_features`, by index
        of the pairs whose student's layer is here. All ranks call it."""

    def flush(self) -> None:
        """Brings what it keeps for later runs to the disk. Raises KDError if it cannot."""

    def report(self, trainer: HostTrainer) -> None:
        """Says in the log what became of the samples. All ranks call it when training is over."""


def choose_source(args, template) -> TeacherSource:
    """What the command line asks for.

    Raises:
        KDError: a server cannot be reached, or has another tokenizer; a teacher cache cannot be used.
    """
    if args.teacher_model_server:
        return ServerTeacher(args, template)
    return CachedTeacher(args, template, LocalTeacher()) if args.kd_teacher_cache else LocalTeacher()
