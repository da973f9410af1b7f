"""How many token ids either model has, and whether the same id means the same token to both."""

import json
import os
from dataclasses import dataclass

from megatron.core import mpu
from swift.utils import get_logger
from torch import Tensor
from transformers import AutoTokenizer

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.losses.lm_head import LMHead

logger = get_logger()
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
TOKEN_EXAMPLES = 3


@dataclass(frozen=True)
class Vocabularies:
    """Numbers of ids without the padding that tensor parallelism adds; the teacher's is None behind a server."""

    student: int
    teacher: int | None

    def of(self, student: Tensor | LMHead, teacher_columns: int | None) -> tuple[int, int | None]:
        """Both numbers as the losses take them: never more than there are columns over all ranks.

        Args:
            teacher_columns: this rank's, or None of a teacher without any.
        """
        columns = student.shape[-1] * mpu.get_tensor_model_parallel_world_size()
        return min(self.student, columns), self.teacher_ids(teacher_columns)

    def teacher_ids(self, columns: int | None) -> int | None:
        if columns is None:
            return self.teacher
        columns *= mpu.get_tensor_model_parallel_world_size()
        return columns if self.teacher is None else min(self.teacher, columns)


def read_vocabularies(trainer: HostTrainer) -> Vocabularies:
    """From the models' configurations; a teacher that is the student itself has the student's."""
    student = trainer.config.padded_vocab_size  # mcore-bridge's name for the vocab_size of config.json
    if trainer.use_teacher_api:
        return Vocabularies(student, None)
    return Vocabularies(student, config_of_teacher(trainer).padded_vocab_size)


def config_of_teacher(trainer: HostTrainer):
    """Of the teacher that was loaded or whose rows are read; the student's where it is its own teacher."""
    return getattr(trainer, "teacher_config", trainer.config)


def check_same_tokens(student, teacher_folder: str) -> None:
    """Raises KDError with examples if an id that both tokenizers have stands for different tokens.

    Args:
        student: the student's tokenizer.
        teacher_folder: the teacher's model; without a tokenizer that can be read as data there is nothing to compare,
            and a warning says so.
    """
    if reason := _unreadable(teacher_folder):
        logger.warning(f"The teacher's tokenizer was not compared with the student's: {reason}.")
        return
    teacher = AutoTokenizer.from_pretrained(teacher_folder)
    student_tokens = {token_id: token for token, token_id in student.get_vocab().items()}
    teacher_tokens = {token_id: token for token, token_id in teacher.get_vocab().items()}
    different = sorted(
        token_id
        for token_id in student_tokens.keys() & teacher_tokens.keys()
        if student_tokens[token_id] != teacher_tokens[token_id]
    )
    if different:
        examples = "; ".join(
            f"{token_id} is {student_tokens[token_id]!r} and {teacher_tokens[token_id]!r}"
            for token_id in different[:TOKEN_EXAMPLES]
        )
        raise KDError(
            f"{len(different)} token ids mean different tokens to student and teacher ({examples}); distilling "
            "probabilities needs one tokenizer. Choose a teacher of the student's family, or distil its texts."
        )


def _unreadable(folder: str) -> str | None:
    if not any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZER_FILES):
        return f"{folder} has none"
    config = os.path.join(folder, "tokenizer_config.json")
    if os.path.exists(config):
        with open(config, encoding="utf-8") as stream:
            if "auto_map" in json.load(stream):
                return f"that of {folder} is code of its own, which is not run"
    return None
