"""Every kd_* flag: its default, allowed values and what it refuses. This is the only home of these defaults, but for
those of a divergence's parameters, which its table has. Imports no torch."""

from dataclasses import MISSING, Field, dataclass, fields, make_dataclass
from typing import Literal

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.losses.divergences import DIVERGENCE_OF_STOCK, DIVERGENCES, parameters
from swift_kd_plugin.teacher_arguments import FeatureFlags, TeacherFlags, flag


def _default(flag: Field):
    return flag.default if flag.default_factory is MISSING else flag.default_factory()


@dataclass
class DataFlags:
    kd_datasets: str | None = flag(
        None,
        "YAML file that names datasets (experience pairs, thinking mixes, ratio mixes); each name can then be given to "
        "--dataset and --val_dataset, as in --dataset pairs#1000. Paths in it are relative to the file.",
    )
    kd_bad_rows: Literal["error", "drop"] = flag(
        "error",
        "What to do with a dataset row that cannot be used (no messages, an unknown role, an empty content, a "
        "teacher_messages column without a user turn): 'error' ends the run and names the row, 'drop' leaves it out "
        "like stock ms-swift and logs how many.",
    )


@dataclass
class DivergenceName:
    kd_divergence: Literal[*DIVERGENCES, "stock"] | None = flag(
        None,
        "Divergence between teacher P and student Q per token. Default: what ms-swift's --beta says (0 forward KL, "
        "1 reverse KL, between them JSD). 'stock' runs ms-swift's own loss code, for comparison.",
    )


def _parameter_flags() -> list[tuple[str, type, Field]]:
    """Name, type and field of the flags of all divergences' parameters."""
    flags = []
    for parameter, owners in parameters().items():
        of, kind = ", ".join(owners), type(parameter.default)
        if parameter.stock is None:
            flags.append((parameter.flag, kind, flag(parameter.default, f"{of}: {parameter.help}")))
        else:
            text = f"{of}: {parameter.help} Default: ms-swift's --{parameter.stock}."
            flags.append((parameter.flag, kind | None, flag(None, text)))
        if parameter.scheduled:
            text = f"{of}: value of --{parameter.flag} at the end of training (see --kd_schedule)."
            flags.append((parameter.final_flag, kind | None, flag(None, text)))
    return flags


ParameterFlags = make_dataclass("ParameterFlags", _parameter_flags(), bases=(DivergenceName,))


@dataclass
class DivergenceFlags(ParameterFlags):
    kd_topk: int | None = flag(
        None,
        "Use the teacher's k most probable tokens only (the same as --gkd_logits_topk). Default: the whole vocabulary; "
        "a teacher server needs a number.",
    )
    kd_topk_tail: Literal["bucket", "ignore", "renormalise"] = flag(
        "bucket",
        "With --kd_topk, what becomes of all other tokens: 'bucket' compares their probability as one entry, 'ignore' "
        "leaves them out of the sum, 'renormalise' makes the k add up to one on both sides, as ms-swift does.",
    )
    kd_allow_removed_mass: bool = flag(
        False,
        "Where the vocabularies differ, train on although the ids that only one side has hold more than 0.001 of its "
        "probability.",
    )


@dataclass
class ObjectiveFlags:
    kd_temperature: float | None = flag(
        None,
        "Temperature of the loss, above 0. Default: --temperature, which is also that of sampling. Giving it turns "
        "--kd_t_squared on.",
    )
    kd_temperature_final: float | None = flag(None, "Value of --kd_temperature at the end of training.")
    kd_t_squared: bool | None = flag(
        None,
        "Multiply the divergence by the squared temperature, which keeps the size of its gradient. Default: true if "
        "--kd_temperature or --kd_ce_alpha is given, else false as in ms-swift.",
    )
    kd_ce_alpha: float | None = flag(
        None,
        "Loss per token: ce_alpha * CE + (1 - ce_alpha) * T^2 * D, 0 to 1; CE counts on responses of the dataset only. "
        "Default: ms-swift's D + sft_alpha * CE.",
    )
    kd_ce_alpha_final: float | None = flag(None, "Value of --kd_ce_alpha at the end of training.")
    kd_ce_column: str | None = flag(
        None,
        "Dataset column with true or false that chooses the rows whose responses have a cross-entropy; a response "
        "of the student never has one.",
    )
    kd_schedule: Literal["constant", "linear", "cosine"] = flag(
        "constant",
        "How temperature, ce_alpha and beta go to their final values; a resumed run goes on where it was.",
    )
    kd_token_policy: Literal["none", "teacher_entropy", "student_top_rho", "clip", "position"] = flag(
        "none",
        "How much each token counts: 'teacher_entropy' 1 - H(P) / log(vocabulary); 'student_top_rho' only the share "
        "--kd_token_rho of each response where the student is least sure; 'clip' bounds what one vocabulary entry adds "
        "to the divergence by --kd_token_clip; 'position' goes from 1 at the first to --kd_position_final at the last "
        "token of a response.",
    )
    kd_token_rho: float = flag(0.2, "Share of tokens that student_top_rho keeps, above 0, at most 1.")
    kd_token_clip: float = flag(0.05, "Largest contribution of one vocabulary entry under the policy clip, above 0.")
    kd_position_final: float = flag(0.5, "Weight of a response's last token under the policy position, at least 0.")
    kd_metrics: bool = flag(
        True,
        "Log both KLs, entropies, agreement, overlap, tail mass and both sides' cross-entropy on the responses next to "
        "the loss, also by who wrote the response and by thinking mode, and warn of a teacher that knows nothing; "
        "false leaves all that out and is faster.",
    )
    kd_kernels: bool = flag(
        True, "Use Triton kernels for the loss on a GPU where they know the divergence; false computes it in PyTorch."
    )
    kd_grad_norm: Literal["stock", "exact"] = flag(
        "stock",
        "Gradient norm (and with it gradient clipping) under tensor parallelism: 'stock' leaves out the embedding and "
        "output-layer shards of all but one rank, as ms-swift 4.6 does; 'exact' counts all of them and gives the norm "
        "of the single-process run.",
    )


@dataclass
class ModelFlags:
    kd_allow_model_differences: bool = flag(
        False,
        "Train on although Megatron builds another model than a config.json says (a sliding window or bias that is "
        "left out, another activation or router); what differs is a warning then.",
    )


@dataclass
class GenerationFlags:
    kd_lmbda_granularity: Literal["sample", "cycle"] = flag(
        "sample",
        "Whether each sample draws by itself who writes its response (the student with probability --lmbda), or all "
        "samples of a generation cycle together, as in ms-swift.",
    )
    kd_lmbda_final: float | None = flag(None, "Value of --lmbda at the end of training (see --kd_schedule).")
    kd_seq_kd_prob: float = flag(
        1.0,
        "With --seq_kd true, the probability that the teacher writes a response that the student does not write; "
        "otherwise it is the dataset's.",
    )
    kd_thinking_prob: float | None = flag(
        None,
        "Share of the written responses that are asked for in thinking mode (enable_thinking), the others without it. "
        "Default: each row's own mode.",
    )
    kd_truncated: Literal["keep", "mask", "drop"] = flag(
        "keep",
        "What becomes of a written response that met --max_completion_length: 'keep' trains on it, 'mask' leaves it "
        "without a loss, 'drop' takes the dataset's response in its place (where the row has none, it is masked).",
    )
    kd_student_engine: Literal["vllm", "transformers", "megatron"] | None = flag(
        None,
        "Who runs the student when it writes: 'transformers' with a copy of the model on each device, 'megatron' with "
        "the training model in place, which is slow. Default: vLLM with --use_vllm true (ms-swift's default), where "
        "--vllm_mode must say colocate or server; with --use_vllm false the student does not write, as in ms-swift.",
    )
    kd_teacher_engine: Literal["auto", "vllm", "server", "transformers", "megatron"] = flag(
        "auto",
        "Who runs the teacher when it writes (--seq_kd true). 'auto': the --teacher_model_server if there is one, else "
        "vLLM with --use_vllm true, else transformers if the teacher fits on the device, else the Megatron teacher.",
    )
    kd_teacher_temperature: float | None = flag(
        None, "Sampling temperature of the teacher when it writes, 0 for greedy. Default: --temperature."
    )
    kd_teacher_gpu_memory_utilization: float | None = flag(
        None,
        "Share of the device for the teacher's own vLLM engine, which sleeps and wakes together with the student's. "
        "Default: --vllm_gpu_memory_utilization.",
    )


@dataclass
class OutputFlags:
    kd_console: Literal["short", "full"] = flag(
        "short",
        "What the console shows: 'short' the tables, a line each logging step, warnings and errors, while all output "
        "of all ranks goes to train.log in the run's folder; 'full' all of it, and no train.log is written.",
    )


@dataclass
class KDArguments(
    *(OutputFlags, GenerationFlags, FeatureFlags, TeacherFlags, ObjectiveFlags, DivergenceFlags, ModelFlags, DataFlags)
):
    """Flags that the plugin adds to `megatron rlhf`. With all of them at their defaults the loss is stock ms-swift's.

    Raises:
        KDError: by `check_kd_flags`.
    """

    def __post_init__(self):
        self.check_kd_flags()
        if self.kd_topk is not None:
            self.gkd_logits_topk = self.kd_topk
        # ms-swift refuses the flag, and nothing of it reads it.
        seq_kd, self.seq_kd = self.seq_kd, False
        super().__post_init__()
        self.seq_kd = seq_kd

    def check_kd_flags(self) -> None:
        """Raises KDError if a flag was changed although `--rlhf_type` is not `gkd`, is out of its range, or contradicts
        another; reads no file."""
        changed = [f.name for f in fields(KDArguments) if getattr(self, f.name) != _default(f)]
        if changed and self.rlhf_type != "gkd":
            raise KDError(
                f"--{changed[0]} has a meaning for --rlhf_type gkd only, and --rlhf_type is {self.rlhf_type}; "
                "drop the flag or change the type."
            )
        self._check_ranges()
        self._check_contradictions(changed)

    def _check_ranges(self) -> None:
        limits = {flag: parameter.limits for parameter in parameters() for flag in parameter.flags if parameter.limits}
        shares = ("kd_ce_alpha", "kd_ce_alpha_final", "lmbda", "kd_lmbda_final", "kd_seq_kd_prob", "kd_thinking_prob")
        limits |= dict.fromkeys((*shares, "kd_teacher_gpu_memory_utilization"), (0, 1))
        divergence = DIVERGENCES.get(self.kd_divergence or DIVERGENCE_OF_STOCK)
        for parameter in divergence.params if divergence and self.rlhf_type == "gkd" else ():
            if parameter.stock and getattr(self, parameter.flag) is None:
                limits[parameter.stock] = parameter.limits
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise KDError(f"--{name} is {value}; it must lie between {low:g} and {high:g}.")
        for name in ("kd_temperature", "kd_temperature_final", "kd_token_clip", "kd_token_rho", "kd_topk"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise KDError(f"--{name} is {value}; it must be above 0.")
        for name in ("kd_feature_weight", "kd_feature_weight_final"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise KDError(f"--{name} is {value}; it must be a number of at least 0.")
        if self.kd_token_rho > 1 or self.kd_position_final < 0:
            raise KDError("--kd_token_rho must be at most 1 and --kd_position_final at least 0.")

    def _check_contradictions(self, changed: list[str]) -> None:
        groups = (DivergenceFlags, ObjectiveFlags, TeacherFlags, FeatureFlags, GenerationFlags)
        loss_flags = {f.name for group in groups for f in fields(group)}
        loss_flags -= {"kd_divergence", "kd_grad_norm", "kd_topk", "kd_on_mismatch"}
        loss_flags -= {"kd_teacher_adapters", "kd_teacher_bits", "kd_teacher_head_bits"}
        if self.kd_divergence == "stock" and (flags := sorted(loss_flags & set(changed))):
            raise KDError(f"--{flags[0]} has no effect on ms-swift's own loss; drop it or --kd_divergence stock.")
        scheduled = [parameter.flag for parameter in parameters() if parameter.scheduled]
        for name in ("kd_temperature", "kd_ce_alpha", *scheduled, "kd_lmbda", "kd_feature_weight"):
            final = getattr(self, f"{name}_final")
            if final is not None and getattr(self, name, 0) is None:
                raise KDError(f"--{name}_final is where a schedule ends; say with --{name} where it begins.")
            if final is not None and self.kd_schedule == "constant":
                raise KDError(f"--{name}_final needs --kd_schedule linear or cosine.")
        if self.kd_ce_alpha is not None and self.sft_alpha:
            raise KDError("--kd_ce_alpha and --sft_alpha both weigh the cross-entropy; keep one of them.")
        if None not in (self.kd_topk, self.gkd_logits_topk) and self.kd_topk != self.gkd_logits_topk:
            raise KDError("--kd_topk and --gkd_logits_topk are the same setting; keep one of them.")
        if self.kd_teacher_adapters and (self.teacher_model is None or self.teacher_model_server):
            raise KDError(
                "--kd_teacher_adapters are merged into a local teacher; give one with --teacher_model (a server loads "
                "its own adapters), or drop the flag."
            )
        self._check_cache_flags()
        self._check_divergence_flags(changed)
        self._check_feature_flags(changed)
        self._check_generation_flags(changed)
        if self.teacher_model_server and (self.kd_topk or self.gkd_logits_topk) is None:
            raise KDError(
                "--teacher_model_server needs --kd_topk, how many most probable tokens it tells at each position "
                "(at most its --max_logprobs): 64, for instance."
            )

    def _check_generation_flags(self, changed: list[str]) -> None:
        if self.kd_divergence == "stock" and self.seq_kd:
            raise KDError("--seq_kd true needs a loss of the plugin; drop --kd_divergence stock.")
        of_teacher = ("kd_seq_kd_prob", "kd_teacher_engine", "kd_teacher_temperature")
        for name in (*of_teacher, "kd_teacher_gpu_memory_utilization"):
            if name in changed and not self.seq_kd:
                raise KDError(f"--{name} is about responses that the teacher writes; add --seq_kd true or drop it.")
        if self.kd_teacher_temperature is not None and self.kd_teacher_temperature < 0:
            raise KDError(f"--kd_teacher_temperature is {self.kd_teacher_temperature}; it must be at least 0.")
        if (self.kd_teacher_engine == "server") > (self.teacher_model_server is not None):
            raise KDError("--kd_teacher_engine server needs the address of the server in --teacher_model_server.")
        if self.teacher_model_server and self.kd_teacher_engine not in ("auto", "server"):
            raise KDError(
                f"--kd_teacher_engine {self.kd_teacher_engine} needs a local teacher, and --teacher_model_server is "
                "given; drop one of them."
            )
        if self.kd_teacher_engine == "transformers" and self.kd_teacher_adapters:
            raise KDError(
                "--kd_teacher_engine transformers does not merge --kd_teacher_adapters; use vllm or megatron."
            )
        student_writes = self.lmbda > 0 or bool(self.kd_lmbda_final)
        by_vllm = self.use_vllm and self.kd_student_engine in (None, "vllm")
        two_engines = student_writes and by_vllm and self.seq_kd and self.teacher_model is not None
        if two_engines and self.sleep_level == 2 and self.kd_teacher_engine in ("auto", "vllm"):
            raise KDError(
                "--sleep_level 2 throws the weights of both sleeping engines away, and the teacher's are not moved "
                "again; use --sleep_level 1."
            )
        for name in ("kd_thinking_prob", "kd_truncated"):
            if name in changed and not (self.seq_kd or student_writes):
                raise KDError(f"--{name} is about written responses; give --lmbda above 0 or --seq_kd true.")
        if self.kd_student_engine == "vllm" and not self.use_vllm:
            raise KDError("--kd_student_engine vllm contradicts --use_vllm false; drop one of them.")
        if self.rlhf_type == "gkd" and self.lmbda > 0 and by_vllm and self.vllm_mode is None:
            raise KDError(
                f"--lmbda {self.lmbda} lets the student write with vLLM; say where: --vllm_mode colocate (or server), "
                "or give --lmbda 0 for the dataset's responses."
            )

    def _check_divergence_flags(self, changed: list[str]) -> None:
        name = self.kd_divergence or DIVERGENCE_OF_STOCK
        for parameter, owners in parameters().items():
            flags = [flag for flag in parameter.flags if flag in changed]
            if flags and name not in owners:
                raise KDError(f"--{flags[0]} belongs to --kd_divergence {' or '.join(owners)}.")
        if self.kd_token_policy == "clip" and DIVERGENCES[name].mix is not None:
            raise KDError(f"--kd_token_policy clip needs a divergence that is a sum over the vocabulary, not {name}.")
