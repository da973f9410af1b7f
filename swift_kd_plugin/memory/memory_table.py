"""The memory of one rank as a table, by arithmetic from plain numbers."""

from dataclasses import dataclass, field

MIB, GIB = 2**20, 2**30
HALF, FULL = 2, 4  # bytes of bf16 and fp32
OFFLOADED = "offloaded, on the device for its forward"
CHUNK_TENSORS = 6  # fp32 tensors [chunk, columns] that a chunk of a loss holds at once, of both sides together


@dataclass(frozen=True)
class MemoryPlan:
    """What a rank will hold. Bytes unless said otherwise; vocabularies and hidden sizes are whole, not per rank.

    Args:
        weights, gradients: of the student; `trainable` is the part of the weights that has gradients.
        optimizer, optimizer_on_host: main weights and states on the device and, offloaded, on the CPU.
        teacher: its weights, 0 without a teacher model on this rank, and `teacher_note` what of it is there.
        teacher_bits: of its linear weights, where they are kept in fewer than they are computed with.
        teacher_offloaded: they lie on the CPU and come back for each forward.
        outputs: the form of what is kept of the teacher.
        output_bytes: of a response token over all ranks.
        outputs_by_columns: they are spread over the tensor-parallel ranks by columns, and otherwise by rows.
        payload_tokens: the most response tokens of a generation cycle, 0 on ranks that compute no loss.
        feature_bytes: of a response token's inner layers that this rank keeps, over all tensor-parallel ranks.
        feature_tokens: the most response tokens of a generation cycle that they are kept of.
        payload_on_host: they wait on the CPU for their micro-batch.
        batch_tokens: the most tokens of a micro-batch.
        fused: the loss goes from hidden states to its value without whole logits.
        hidden, vocabulary: sizes of the student.
        chunk: tokens that a loss works on at once.
        block: tokens whose logits a fused loss makes at once.
        engine: of the rollout engine, and `engine_note` where it runs.
    """

    weights: int
    trainable: int
    gradients: int
    optimizer: int
    optimizer_on_host: int
    teacher: int
    teacher_offloaded: bool
    outputs: str
    output_bytes: int
    outputs_by_columns: bool
    payload_tokens: int
    payload_on_host: bool
    batch_tokens: int
    fused: bool
    hidden: int
    vocabulary: int
    chunk: int
    block: int
    tensor_parallel: int = 1
    teacher_bits: int | None = None
    feature_bytes: int = 0
    feature_tokens: int = 0
    engine: int = 0
    engine_note: str = "none"
    teacher_note: str = ""


@dataclass(frozen=True)
class MemoryRow:
    """A line of the table: bytes on the device and on the CPU."""

    name: str
    device: int = 0
    host: int = 0
    note: str = field(default="", compare=False)


def payload_bytes(plan: MemoryPlan, tokens: int) -> int:
    """What this rank keeps of the teacher for `tokens` response tokens."""
    if plan.outputs_by_columns:
        return tokens * -(-plan.output_bytes // plan.tensor_parallel)
    return -(-tokens // plan.tensor_parallel) * plan.output_bytes


def loss_bytes(plan: MemoryPlan) -> int:
    """What the loss of a micro-batch needs beside the payload.

    With whole logits: the student's, whose memory takes the gradient, the teacher's part of the payload where it waits
    on the CPU, and one chunk in fp32. Fused: a block of both sides' logits, one chunk, the gradient of the output layer
    in fp32 and what autograd is handed for it, and the gradient of the hidden states.
    """
    if not plan.batch_tokens:
        return 0
    columns = -(-plan.vocabulary // plan.tensor_parallel)
    chunk = CHUNK_TENSORS * min(plan.chunk, plan.batch_tokens) * columns * FULL
    if plan.fused:
        block = 2 * min(plan.block, plan.batch_tokens) * columns * HALF
        return block + chunk + columns * plan.hidden * (FULL + HALF) + plan.batch_tokens * plan.hidden * HALF
    fetched = payload_bytes(plan, plan.batch_tokens) if plan.payload_on_host else 0
    return chunk + plan.batch_tokens * columns * HALF + fetched


def memory_table(plan: MemoryPlan) -> list[MemoryRow]:
    """One row per owner of memory. Activations are not among them: they depend on the layers and the recomputation."""
    payload = payload_bytes(plan, plan.payload_tokens)
    per_token = payload_bytes(plan, plan.tensor_parallel) // plan.tensor_parallel
    at_most = f"at most: {plan.payload_tokens:,} tokens a cycle of {per_token:,} bytes, {plan.outputs}"
    offloaded = plan.teacher * plan.teacher_offloaded
    features = -(-plan.feature_tokens // plan.tensor_parallel) * plan.feature_bytes
    of_features = (
        f"at most: {plan.feature_tokens:,} tokens a cycle of {plan.feature_bytes // plan.tensor_parallel:,} bytes"
    )
    return [
        MemoryRow("student's weights", plan.weights, note=f"{as_size(plan.trainable)} of them trainable"),
        MemoryRow("gradients", plan.gradients),
        MemoryRow("optimizer", plan.optimizer, plan.optimizer_on_host, "main weights and states"),
        MemoryRow("teacher", plan.teacher, offloaded, _of_teacher(plan)),
        MemoryRow("teacher's outputs", *_placed(plan, payload), at_most),
        *([MemoryRow("teacher's features", *_placed(plan, features), of_features)] if features else []),
        MemoryRow(
            "loss", loss_bytes(plan), note=f"{'fused' if plan.fused else 'logits'}, {plan.batch_tokens:,} tokens"
        ),
        MemoryRow("rollout engine", plan.engine, note=plan.engine_note),
    ]


def _of_teacher(plan: MemoryPlan) -> str:
    notes = [plan.teacher_note] if plan.teacher_note else []
    if plan.teacher and plan.teacher_bits:
        notes.append(f"linear weights in {plan.teacher_bits} bits")
    if plan.teacher and plan.teacher_offloaded:
        notes.append("offloaded, on the device for its forward")
    return "; ".join(notes)


def _placed(plan: MemoryPlan, kept: int) -> tuple[int, int]:
    """What waits for its micro-batch, on the device and on the CPU."""
    return (0, kept) if plan.payload_on_host else (kept, 0)


def total_row(rows: list[MemoryRow]) -> MemoryRow:
    return MemoryRow("total", sum(row.device for row in rows), sum(row.host for row in rows))


def render_memory(rows: list[MemoryRow], capacity: int, measured: int | None = None) -> str:
    """The table as aligned text.

    Args:
        capacity: memory of the device in bytes.
        measured: highest memory of the device in bytes so far, if there was a step.
    """
    total = total_row(rows)
    lines = [("", "device", "CPU", "")]
    lines += [(row.name, as_size(row.device), as_size(row.host), row.note) for row in rows]
    share = f"{total.device / capacity:.1%} of {as_size(capacity)}, without activations"
    lines.append(("total", as_size(total.device), as_size(total.host), share))
    if measured is not None:
        share = f"{measured / capacity:.1%} of {as_size(capacity)}, with activations"
        lines.append(("measured peak", as_size(measured), "", share))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {device:>{widths[1]}}  {host:>{widths[2]}}  {note}".rstrip()
        for name, device, host, note in lines
    )


def as_size(count: int) -> str:
    """A number of bytes for a person."""
    if not count:
        return "-"
    return f"{count / GIB:,.2f} GiB" if count >= GIB / 10 else f"{count / MIB:,.2f} MiB"
