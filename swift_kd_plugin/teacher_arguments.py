"""The kd_* flags about what the teacher says: how it is held, kept and matched. Imports no torch."""

from dataclasses import dataclass, field, fields
from typing import Literal

from swift_kd_plugin.errors import KDError


def flag(default, text: str):
    """A field of a class of flags, with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class TeacherFlags:
    kd_fused_loss: bool = flag(
        True,
        "Compute the loss from hidden states and output weight, a few tokens at a time, so that no logits of a whole "
        "micro-batch are held; false computes the student's logits first. Models that change their logits after the "
        "output layer (softcaps, biases) take the logits anyway.",
    )
    kd_teacher_payload_device: Literal["cuda", "cpu"] = flag(
        "cuda",
        "Where what the teacher said waits until it is trained on: on the GPU or in pinned CPU memory.",
    )
    kd_on_mismatch: Literal["error", "drop"] = flag(
        "error",
        "What to do with a sample whose two views end in different response tokens: 'error' ends the run and names "
        "the sample, 'drop' trains on the others and logs their share.",
    )
    kd_teacher_bits: Literal[8, 4] | None = flag(
        None,
        "Keep the linear weights of the local --teacher_model in 8 bits (integers, a scale for each output channel) or "
        "4 bits (NF4, a scale for each 64 values); they are quantised while they are loaded and dequantised for the "
        "layer that runs. Needs bitsandbytes. Default: as they are.",
    )
    kd_teacher_head_bits: Literal[16, 8, 4] = flag(
        16,
        "With --kd_teacher_bits, the same of the teacher's output layer, which is dequantised for each micro-batch of "
        "the loss; 16 leaves it as it is.",
    )
    kd_teacher_cache: str | None = flag(
        None,
        "Folder in which what a teacher says is kept by sample: a local teacher's hidden states, or with --kd_topk or "
        "a --teacher_model_server the most probable tokens, and each layer of --kd_feature_layers. Later epochs, runs, "
        "students and divergences read it, in any layout and order.",
    )
    kd_teacher_cache_mode: Literal["auto", "read", "write", "fill"] = flag(
        "auto",
        "With --kd_teacher_cache: 'auto' reads what is there, scores what is not and writes it; 'read' loads no "
        "teacher but its output layer and asks no server, and a sample that is not there ends the run; 'write' scores "
        "everything; 'fill' "
        "scores the dataset without a student and ends (`swift-kd score`).",
    )
    kd_teacher_adapters: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of PEFT LoRA adapters, merged in order into the local --teacher_model when it is loaded."
        },
    )

    def _student_writes(self) -> bool:
        """Whether responses come from the student, by any engine."""
        by_vllm = self.use_vllm and self.kd_student_engine in (None, "vllm")
        return bool(self.lmbda or self.kd_lmbda_final) and bool(by_vllm or self.kd_student_engine)

    def _check_cache_flags(self) -> None:
        if self.kd_teacher_cache is None:
            if self.kd_teacher_cache_mode != "auto":
                raise KDError("--kd_teacher_cache_mode needs the folder of the cache in --kd_teacher_cache.")
            return
        if self.kd_teacher_cache_mode == "fill" and (self.seq_kd or self.lmbda or self.tuner_type != "full"):
            raise KDError(
                "--kd_teacher_cache_mode fill has no student, and scores the dataset's responses; give --lmbda 0, and "
                "drop --seq_kd and --tuner_type, or start it with `swift-kd score`."
            )
        if self.kd_teacher_cache_mode == "read" and self._student_writes():
            raise KDError(
                "--kd_teacher_cache_mode read with a student that writes (--lmbda or --kd_lmbda_final above 0): a "
                "response that was just written is never among those that a teacher has scored before; give --lmbda 0, "
                "or --kd_teacher_cache_mode auto."
            )
        if self.teacher_model_server:
            return  # its most probable tokens come at temperature 1 and serve every other
        if self.teacher_model is None:
            raise KDError(
                "--kd_teacher_cache keeps what a teacher says that never changes, and without --teacher_model the "
                "student is its own teacher at each step; give one, or drop the flag."
            )
        if None not in (self.kd_topk or self.gkd_logits_topk, self.kd_temperature_final):
            raise KDError(
                "--kd_teacher_cache with --kd_topk holds probabilities at one temperature, and "
                "--kd_temperature_final moves it; drop it, or --kd_topk, as hidden states serve every temperature."
            )


@dataclass
class FeatureFlags:
    kd_feature_weight: float = flag(
        0.0,
        "Match hidden states: weight * the mean over the pairs of --kd_feature_layers is added to the loss of every "
        "response token, times its loss_scale. 0 is off. Needs a local teacher.",
    )
    kd_feature_weight_final: float | None = flag(
        None, "Value of --kd_feature_weight at the end of training (see --kd_schedule)."
    )
    kd_feature_layers: str = flag(
        "auto",
        "Whose outputs are matched, student:teacher, counted from 1, as in 4:8,8:16. 'auto' spreads at most four pairs "
        "evenly, the last layers among them.",
    )
    kd_feature_loss: Literal["mse", "cosine", "smooth_l1"] = flag(
        "mse",
        "How far hidden states are apart: 'mse' the mean square over their entries, 'cosine' 1 - cosine, 'smooth_l1' "
        "the mean over their entries of d^2 / 2 below 1 and |d| - 1/2 above.",
    )
    kd_feature_projection: Literal["linear", "none"] = flag(
        "linear",
        "Where the hidden sizes differ: 'linear' trains a matrix per pair from the student's to the teacher's, "
        "orthogonal at the start, which the exported model leaves out; 'none' refuses such models.",
    )

    def _check_feature_flags(self, changed: list[str]) -> None:
        if not (self.kd_feature_weight or self.kd_feature_weight_final):
            if flags := [f.name for f in fields(FeatureFlags) if f.name in changed]:
                raise KDError(f"--{flags[0]} has no effect without features; give --kd_feature_weight above 0.")
        elif self.teacher_model_server:
            raise KDError(
                "--kd_feature_weight matches hidden states, which a --teacher_model_server does not send; give a local "
                "--teacher_model, or drop it."
            )
