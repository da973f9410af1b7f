"""From the command line to the objective that is minimised."""

from swift_kd_plugin.losses.divergences import check_params
from swift_kd_plugin.losses.objective import Objective, TokenPolicy
from swift_kd_plugin.losses.schedules import Schedule


def make_objective(args) -> Objective:
    """The objective of KDArguments; where none of their flags is given, what ms-swift's beta and temperature mean.

    Raises:
        ValueError: a parameter is out of its divergence's range.
    """
    mixed = args.kd_ce_alpha is not None
    tempered = args.kd_temperature is not None
    divergence = args.kd_divergence or "jsd"
    return Objective(
        divergence=divergence,
        params=_params(args, divergence),
        beta=_schedule(args, "beta", args.beta) if divergence == "jsd" else None,
        temperature=_schedule(args, "temperature", args.temperature),
        ce_alpha=_schedule(args, "ce_alpha", args.sft_alpha),
        mixed=mixed,
        t_squared=(mixed or tempered) if args.kd_t_squared is None else args.kd_t_squared,
        tail=args.kd_topk_tail,
        policy=TokenPolicy(args.kd_token_policy, args.kd_token_rho, args.kd_token_clip, args.kd_position_final),
    )


def _params(args, divergence: str) -> dict:
    params = {
        "jsd": {"scaled": args.kd_jsd_scaled},
        "skew_kl": {"lam": args.kd_lambda},
        "skew_rkl": {"lam": args.kd_lambda},
        "adaptive_kl": {"head_mass": args.kd_head_mass, "fixed_weights": args.kd_adaptive_fixed_weights},
        "alpha_beta": {"a": args.kd_ab_alpha, "b": args.kd_ab_beta},
    }.get(divergence, {})
    check_params(divergence, params)
    return params


def _schedule(args, name: str, stock: float) -> Schedule:
    start = getattr(args, f"kd_{name}")
    return Schedule(stock if start is None else start, getattr(args, f"kd_{name}_final"), args.kd_schedule)
