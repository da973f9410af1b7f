"""What the plugin keeps of a run beside ms-swift's own attributes of the trainer, where it is `trainer.kd`."""

from dataclasses import dataclass, field
from typing import Any

from swift_kd_plugin.losses.objective import Objective


@dataclass(repr=False, eq=False)
class KDState:
    """The plugin's part of a trainer. A class of a room above this one stands here by name.

    What has no default `KDTrainer` sets, once models and engines are there; ms-swift's own loss has no use of it.
    """

    merged_export: Any = None
    """`MergedExport`, from the merge of the LoRA adapters until they are unmerged."""
    writers: dict[str, Any] = field(default_factory=dict)
    """`ResponseWriter` of "student" and "teacher"; without one a response is the dataset's."""
    mix: Any = field(init=False)
    """`WriterMix`: who writes which response."""
    rows: int | None = None
    """Number of training rows; None of a stream."""
    rows_filter: Any = None
    """`RowFilter`: which rows cannot be encoded, where that is not known before their step."""
    validation: Any = None
    """`ValidationRows`: what every evaluation takes."""
    said: set[str] = field(default_factory=set)
    """Warnings that need no repetition."""
    source: Any = field(init=False)
    """`TeacherSource`: where what the teacher says comes from, and in which form."""
    quantised: Any = None
    """`QuantisedTeacher` with --kd_teacher_bits."""
    objective: Objective = field(init=False)
    """The loss per token over training."""
    vocabularies: Any = field(init=False)
    """`Vocabularies`: how many token ids each side has."""
    fused: bool = field(init=False)
    """The loss starts from hidden states."""
    features: Any = None
    """`FeatureMatching`: the student's layers that are compared with the teacher's; None where none are."""
    metric_names: tuple[str, ...] = field(init=False)
    """What is logged of each token."""
    memory_report: Any = field(init=False)
    """`MemoryReport`: what a rank's memory goes to."""
    train_seconds: float = 0.0
    """Wall time of the train steps since the last log."""
    tokens: float = 0.0
    """Trained on in all logged steps of this process."""
    seconds: float = 0.0
    """Wall time of their train steps."""
    generation_seconds: float = 0.0
    """The part of it in which responses were written."""
