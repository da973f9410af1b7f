"""The kernels of `triton_dense`: one program per token, which walks over its row of logits block by block.

T tokens, v this rank's columns that both sides have, BLOCK columns of one step. p, q are the probabilities of teacher
and student, x_p, x_q their raw logits. Scalars per token come and go as rows of one fp32 tensor [names, T]; the SLOT
of a name is its place in `NORMALISERS`, `SCALARS` or `SUMS`.

Every lane of a block keeps its own running sums, and the lanes are added up once, as a tree, after the last block: no
sum is longer than v / BLOCK + log2(BLOCK) additions. Arithmetic is fp32; the kernels must be launched without fused
multiply-add (`enable_fp_fusion=False`), so that both sides round alike and equal sides give exactly zero.

exp(x / temperature) is exp2(x * base2) with base2 = log2(e) / temperature: a GPU has an instruction for exp2 alone.
"""

import triton
import triton.language as tl

NORMALISERS = (
    "peak_q", "mass_q", "peak_p", "mass_p", "ce_mass", "ratio", "offset", "q_at_peak_p",
    "rest_peak_q", "rest_mass_q", "rest_ce_mass", "rest_peak_p", "rest_mass_p", "plain_mass_p", "rest_plain_mass_p",
)  # fmt: skip
SCALARS = (
    "peak_q", "factor_q", "peak_p", "factor_p", "shift", "shift_rest", "total", "ce_peak", "ce_factor", "ce_weight",
)  # fmt: skip
SUMS = ("value", "slope", "forward_kl", "reverse_kl", "mean_p", "mean_q")

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
TINY = tl.constexpr(1.1754943508222875e-38)
LOG_2 = tl.constexpr(0.6931471805599453)
HALF_EPS = tl.constexpr(2.0**-24)


@triton.jit
def _get(values, tokens, token, SLOT: tl.constexpr):
    return tl.load(values + SLOT * tokens + token)


@triton.jit
def _put(values, tokens, token, value, SLOT: tl.constexpr):
    tl.store(values + SLOT * tokens + token, value)


@triton.jit
def _logits(row, cols, stop):
    """Logits in fp32, -inf from column `stop` on, where every probability is then 0."""
    return tl.load(row + cols, mask=cols < stop, other=-float("inf")).to(tl.float32)


@triton.jit
def _log1p(x):
    """log(1 + x) to one ulp, finite where rounding has brought x to -1: there the term's probability is nil.

    Written out because the interpreter has no libdevice, and log(1 + x) with its rounding undone takes twice the
    instructions. 1 + x = 2^k (1 + f) with f in [-1/4, 1/2), rounded once; then k log(2) + f + f^2 R(f), with R the
    polynomial of degree 8 that keeps the relative error of log(1 + f) below 5e-9.
    """
    x = tl.where(x < HALF_EPS - 1, HALF_EPS - 1, x)
    exponent = ((1 + x).to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000  # k << 23; 0x3F400000 is 3/4
    shrink = (0x3F800000 - exponent).to(tl.float32, bitcast=True)  # 2^-k
    f = tl.fma(x, shrink, shrink - 1)
    r = tl.fma(f, -0.04620477184653282, 0.10592155158519745)
    r = tl.fma(f, r, -0.1319284290075302)
    r = tl.fma(f, r, 0.1446780115365982)
    r = tl.fma(f, r, -0.16642937064170837)
    r = tl.fma(f, r, 0.19990992546081543)
    r = tl.fma(f, r, -0.25000229477882385)
    r = tl.fma(f, r, 0.3333345055580139)
    r = tl.fma(f, r, -0.5)
    return tl.fma(exponent.to(tl.float32), LOG_2 * 2.0**-23, tl.fma(f * f, r, f))


@triton.jit
def _shares(x, peak, base2):
    """What a running sum relative to `peak` is multiplied with once `x` has been seen, and with what `x` joins it."""
    higher = x > peak
    shrink = tl.exp2(-tl.abs(x - peak) * base2)
    return tl.where(higher, shrink, 1.0), tl.where(higher, 1.0, shrink)


@triton.jit
def _mass_beyond(row, begin, stop, base2, BLOCK: tl.constexpr):
    """Peak of columns [begin, stop) and their sum of exp(logit - peak), tempered and not."""
    peak = tl.full([BLOCK], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    plain = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, stop, BLOCK):
        x = _logits(row, start + tl.arange(0, BLOCK), stop)
        keep, join = _shares(x, peak, base2)
        mass = tl.fma(mass, keep, join)
        keep, join = _shares(x, peak, LOG2E)
        plain = tl.fma(plain, keep, join)
        peak = tl.maximum(peak, x)
    top = tl.max(peak)
    mass = tl.sum(mass * tl.exp2((peak - top) * base2))
    return top, mass, tl.sum(plain * tl.exp2((peak - top) * LOG2E))


@triton.jit(do_not_specialize=["tokens"])
def normalise(
    student, student_rows, student_stride, teacher, teacher_rows, teacher_stride, out, tokens,
    width, student_width, teacher_width, base2,
    CE_APART: tl.constexpr, PLAIN_P: tl.constexpr, RATIO: tl.constexpr, FAVOURITE: tl.constexpr, RESTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Peaks and masses sum exp((x - peak) / temperature) of both sides over columns [0, width) -> `NORMALISERS`.

    Args:
        student, teacher: raw logits; token t is row `rows[t]` of them.
        student_width, teacher_width: how many columns of either side are real ids.
        base2: log2(e) / temperature.
        CE_APART: also the student's mass at temperature 1.
        PLAIN_P: also the teacher's.
        RATIO: also sum exp((x_q - peak_q) / temperature) (x_q - x_p - offset). The offset, any of the differences,
            takes off what two models' logits differ by throughout, so that the sum is rounded without it.
        FAVOURITE: also the student's logit where the teacher's is largest.
        RESTS: also peaks and masses of the columns from `width` on.
    """
    token = tl.program_id(0)
    q_row = student + tl.load(student_rows + token) * student_stride
    p_row = teacher + tl.load(teacher_rows + token) * teacher_stride
    lanes = tl.arange(0, BLOCK)
    peak_q = tl.full([BLOCK], LOWEST, tl.float32)
    peak_p = tl.full([BLOCK], LOWEST, tl.float32)
    mass_q = tl.zeros([BLOCK], tl.float32)
    mass_p = tl.zeros([BLOCK], tl.float32)
    ce_mass = tl.zeros([BLOCK], tl.float32)
    plain_p = tl.zeros([BLOCK], tl.float32)
    ratio = tl.zeros([BLOCK], tl.float32)
    favourite = tl.zeros([BLOCK], tl.int32)
    if RATIO:
        offset = _logits(q_row, 0, width) - _logits(p_row, 0, width)
        offset = tl.where(tl.abs(offset) < float("inf"), offset, 0.0)
    for start in range(0, width, BLOCK):
        x_q = _logits(q_row, start + lanes, width)
        x_p = _logits(p_row, start + lanes, width)
        keep, join = _shares(x_q, peak_q, base2)
        mass_q = tl.fma(mass_q, keep, join)
        if RATIO:
            ratio = tl.fma(ratio, keep, tl.where(join == 0, 0.0, join * (x_q - x_p - offset)))
        if CE_APART:
            keep, join = _shares(x_q, peak_q, LOG2E)
            ce_mass = tl.fma(ce_mass, keep, join)
        keep, join = _shares(x_p, peak_p, base2)
        mass_p = tl.fma(mass_p, keep, join)
        if PLAIN_P:
            keep, join = _shares(x_p, peak_p, LOG2E)
            plain_p = tl.fma(plain_p, keep, join)
        if FAVOURITE:
            favourite = tl.where(x_p > peak_p, start + lanes, favourite)
        peak_q = tl.maximum(peak_q, x_q)
        peak_p = tl.maximum(peak_p, x_p)

    top_q = tl.max(peak_q)
    top_p = tl.max(peak_p)
    scale_q = tl.exp2((peak_q - top_q) * base2)
    _put(out, tokens, token, top_q, 0)
    _put(out, tokens, token, tl.sum(mass_q * scale_q), 1)
    _put(out, tokens, token, top_p, 2)
    _put(out, tokens, token, tl.sum(mass_p * tl.exp2((peak_p - top_p) * base2)), 3)
    if CE_APART:
        _put(out, tokens, token, tl.sum(ce_mass * tl.exp2((peak_q - top_q) * LOG2E)), 4)
    if RATIO:
        _put(out, tokens, token, tl.sum(ratio * scale_q), 5)
        _put(out, tokens, token, offset, 6)
    if FAVOURITE:
        first = tl.min(tl.where(peak_p == top_p, favourite, width))
        _put(out, tokens, token, tl.load(q_row + first, mask=first < width, other=LOWEST).to(tl.float32), 7)
    if RESTS:
        peak, mass, plain = _mass_beyond(q_row, width, student_width, base2, BLOCK)
        _put(out, tokens, token, peak, 8)
        _put(out, tokens, token, mass, 9)
        _put(out, tokens, token, plain, 10)
        peak, mass, plain = _mass_beyond(p_row, width, teacher_width, base2, BLOCK)
        _put(out, tokens, token, peak, 11)
        _put(out, tokens, token, mass, 12)
        _put(out, tokens, token, plain, 14)
    if PLAIN_P:
        _put(out, tokens, token, tl.sum(plain_p * tl.exp2((peak_p - top_p) * LOG2E)), 13)


@triton.jit
def _terms(p, q, log_ratio, beta, rest, scale, KIND: tl.constexpr):
    """What each entry adds to the divergence and its weighted slope, as in `divergences`.

    The mixture is M = beta P + rest Q with rest = 1 - beta, so that P/M = 1 + rest gap and Q/M = 1 - beta gap.
    """
    gap = p - q
    relative = gap / tl.maximum(beta * p + rest * q, TINY)
    if KIND == "forward_kl":
        value = tl.where(p == 0, 0.0, p * log_ratio)
        slope = -p
    elif KIND == "reverse_kl":
        value = tl.where(q == 0, 0.0, -q * log_ratio)
        slope = value
    elif KIND == "jsd":
        slope = q * _log1p(-beta * relative) * (rest * scale)
        # With a product and a sum in place of the fma, Triton 3.9's LLVM crashes on this kernel for sm_86 to sm_90.
        value = tl.fma(p * _log1p(rest * relative), beta * scale, slope)
    elif KIND == "skew_kl":
        value = p * _log1p(rest * relative)
        slope = -rest * p * (1 - beta * relative)
    elif KIND == "skew_rkl":
        value = q * _log1p(-beta * relative)
        slope = value - rest * q * (1 - beta * relative)
    else:
        tl.static_assert(KIND == "tvd")
        value = 0.5 * tl.abs(gap)
        slope = tl.where(gap > 0, -0.5, tl.where(gap < 0, 0.5, gap)) * q  # a gap that is no number stays none
    return value, slope


@triton.jit(do_not_specialize=["tokens"])
def measure(
    student, student_rows, student_stride, teacher, teacher_rows, teacher_stride, gradient, gradient_stride,
    scalars, labels, sums, tokens, width, student_width, gradient_width,
    base2, per_temperature, beta, rest, scale, gradient_scale,
    KIND: tl.constexpr, SUM: tl.constexpr, SUM_SLOPE: tl.constexpr, STATISTICS: tl.constexpr,
    WRITE: tl.constexpr, CE: tl.constexpr, CE_APART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the divergence's terms over columns [0, width) -> `SUMS`, and the gradient in the student's logits.

    Args:
        gradient: row `student_rows[t]` of it gets token t's gradient, columns [0, gradient_width); those that are no
            real ids get 0. May be the student's memory: each block is read before it is written.
        scalars: as in `SCALARS`: probabilities are exp((x - peak) / temperature) * factor, and log(P/Q) is
            (x_p - x_q) / temperature - shift - shift_rest; `total` is the sum of the slopes over all ranks.
        labels: this rank's column of the next token, -1 where another rank holds it.
        base2, per_temperature: log2(e) / temperature and 1 / temperature.
        gradient_scale: weight of the divergence / temperature.
        SUM, WRITE: whether to make the sums, whether to write the gradient. SUM_SLOPE and STATISTICS: which sums.
        CE, CE_APART: whether cross-entropy joins the gradient, and whether its softmax is another than q.
    """
    token = tl.program_id(0)
    row = tl.load(student_rows + token)
    q_row = student + row * student_stride
    p_row = teacher + tl.load(teacher_rows + token) * teacher_stride
    gradient += row * gradient_stride
    peak_q = _get(scalars, tokens, token, 0)
    factor_q = _get(scalars, tokens, token, 1)
    peak_p = _get(scalars, tokens, token, 2)
    factor_p = _get(scalars, tokens, token, 3)
    shift = _get(scalars, tokens, token, 4)
    shift_rest = _get(scalars, tokens, token, 5)
    if WRITE:
        total = _get(scalars, tokens, token, 6)
    if CE:
        label = tl.load(labels + token)
        ce_peak = _get(scalars, tokens, token, 7)
        ce_factor = _get(scalars, tokens, token, 8)
        ce_weight = _get(scalars, tokens, token, 9)

    lanes = tl.arange(0, BLOCK)
    value_sum = tl.zeros([BLOCK], tl.float32)
    slope_sum = tl.zeros([BLOCK], tl.float32)
    forward_kl = tl.zeros([BLOCK], tl.float32)
    reverse_kl = tl.zeros([BLOCK], tl.float32)
    mean_p = tl.zeros([BLOCK], tl.float32)
    mean_q = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        cols = start + lanes
        x_q = _logits(q_row, cols, width)
        x_p = _logits(p_row, cols, width)
        q = tl.exp2((x_q - peak_q) * base2) * factor_q
        p = tl.exp2((x_p - peak_p) * base2) * factor_p
        log_ratio = (x_p - x_q) * per_temperature - shift - shift_rest
        value, slope = _terms(p, q, log_ratio, beta, rest, scale, KIND)
        if SUM:
            value_sum += value
        if SUM_SLOPE:
            slope_sum += slope
        if STATISTICS:
            forward_kl += tl.where(p == 0, 0.0, p * log_ratio)
            reverse_kl -= tl.where(q == 0, 0.0, q * log_ratio)
            mean_p += tl.where(p == 0, 0.0, p * (x_p - peak_p))
            mean_q += tl.where(q == 0, 0.0, q * (x_q - peak_q))
        if WRITE:
            change = (slope - q * total) * gradient_scale
            if CE:
                softmax = q
                if CE_APART:
                    softmax = tl.exp2((x_q - ce_peak) * LOG2E) * ce_factor
                change += ce_weight * (softmax - (cols == label).to(tl.float32))
            tl.store(gradient + cols, change.to(gradient.dtype.element_ty), mask=cols < width)

    if SUM:
        _put(sums, tokens, token, tl.sum(value_sum), 0)
    if SUM_SLOPE:
        _put(sums, tokens, token, tl.sum(slope_sum), 1)
    if STATISTICS:
        _put(sums, tokens, token, tl.sum(forward_kl), 2)
        _put(sums, tokens, token, tl.sum(reverse_kl), 3)
        _put(sums, tokens, token, tl.sum(mean_p), 4)
        _put(sums, tokens, token, tl.sum(mean_q), 5)
    if WRITE:
        for start in range(width, gradient_width, BLOCK):
            cols = start + lanes
            change = tl.zeros([BLOCK], tl.float32)
            if CE:
                x_q = _logits(q_row, cols, student_width)
                change = ce_weight * (tl.exp2((x_q - ce_peak) * LOG2E) * ce_factor - (cols == label).to(tl.float32))
            tl.store(gradient + cols, change.to(gradient.dtype.element_ty), mask=cols < gradient_width)
