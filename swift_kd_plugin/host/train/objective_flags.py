"""From the command line to the objective that is minimised."""

from swift_kd_plugin.losses.divergences import DIVERGENCE_OF_STOCK, DIVERGENCES, check_params
from swift_kd_plugin.losses.objective import Objective, TokenPolicy
from swift_kd_plugin.losses.schedules import Schedule


def make_objective(args) -> Objective:
    """The objective of KDArguments; where none of their flags is given, what ms-swift's beta and temperature mean.

    Raises:
        ValueError: a parameter is out of its divergence's range.
    """
    mixed = args.kd_ce_alpha is not None
    tempered = args.kd_temperature is not None
    divergence = args.kd_divergence or DIVERGENCE_OF_STOCK
    return Objective(
        divergence=divergence,
        params=_params(args, divergence),
        temperature=_schedule(args, "kd_temperature", args.temperature),
        ce_alpha=_schedule(args, "kd_ce_alpha", args.sft_alpha),
        mixed=mixed,
        t_squared=(mixed or tempered) if args.kd_t_squared is None else args.kd_t_squared,
        tail=args.kd_topk_tail,
        policy=TokenPolicy(args.kd_token_policy, args.kd_token_rho, args.kd_token_clip),
    )


def _params(args, divergence: str) -> dict[str, float | bool | Schedule]:
    """Of the divergence: what its flags say, else the flag of ms-swift that means the same."""
    params = {}
    for parameter in DIVERGENCES[divergence].params:
        stock = getattr(args, parameter.stock) if parameter.stock else None
        read = _schedule if parameter.scheduled else _value
        params[parameter.name] = read(args, parameter.flag, stock)
    check_params(divergence, {name: getattr(value, "start", value) for name, value in params.items()})
    return params


def _value(args, flag: str, stock: float | None) -> float | bool:
    value = getattr(args, flag)
    return stock if value is None else value


def _schedule(args, flag: str, stock: float | None) -> Schedule:
    return Schedule(_value(args, flag, stock), getattr(args, f"{flag}_final"), args.kd_schedule)
