"""Every kd_* flag: its default, allowed values and what it refuses. This is the only home of these defaults."""

from dataclasses import dataclass, field, fields
from typing import Literal

from swift_kd_plugin.errors import KDError


@dataclass
class KDArguments:
    """Flags that the plugin adds to `megatron rlhf`. With all of them at their defaults training is stock ms-swift's.

    Raises:
        KDError: a flag was changed although `--rlhf_type` is not `gkd`.
    """

    kd_bad_rows: Literal["error", "drop"] = field(
        default="error",
        metadata={
            "help": "What to do with a dataset row that cannot be used (no messages, an unknown role, an empty "
            "content, a teacher_messages column without a user turn): 'error' ends the run and names the row, "
            "'drop' leaves it out like stock ms-swift and logs how many."
        },
    )
    kd_grad_norm: Literal["stock", "exact"] = field(
        default="stock",
        metadata={
            "help": "Gradient norm (and with it gradient clipping) under tensor parallelism: 'stock' leaves out the "
            "embedding and output-layer shards of all but one rank, as ms-swift 4.6 does; 'exact' counts all of "
            "them and gives the norm of the single-process run."
        },
    )

    def __post_init__(self):
        self._refuse_without_gkd()
        super().__post_init__()

    def _refuse_without_gkd(self) -> None:
        changed = [f.name for f in fields(KDArguments) if getattr(self, f.name) != f.default]
        if changed and self.rlhf_type != "gkd":
            raise KDError(
                f"--{changed[0]} has a meaning for --rlhf_type gkd only, and --rlhf_type is {self.rlhf_type}; "
                "drop the flag or change the type."
            )
