"""The divergences that the tests of the losses try."""

from swift_kd_plugin.losses import DIVERGENCES

DENSE_CASES = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0}),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.9, "scaled": True}),
    ("skew_kl", {}),
    ("skew_kl", {"lam": 0.0}),
    ("skew_kl", {"lam": 0.8}),
    ("skew_rkl", {}),
    ("skew_rkl", {"lam": 0.0}),
    ("skew_rkl", {"lam": 0.8}),
    ("adaptive_kl", {}),
    ("adaptive_kl", {"head_mass": 0.0}),
    ("adaptive_kl", {"head_mass": 0.9}),
    ("adaptive_kl", {"fixed_weights": True}),
    ("tvd", {}),
    ("alpha_beta", {}),
    ("alpha_beta", {"a": 1.0, "b": 1.0}),
    ("alpha_beta", {"a": -0.5, "b": 1.2}),
    ("alpha_beta", {"a": 1.5, "b": -0.4}),
    ("alpha_beta", {"a": 0.4, "b": 0.0}),
    ("alpha_beta", {"a": 0.0, "b": 0.6}),
    ("alpha_beta", {"a": 0.5, "b": -0.5}),
    ("alpha_beta", {"a": 0.0, "b": 0.0}),
]
# One of each kind, for tests that are about something else than the formulas.
ONE_OF_EACH = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.3}),
    ("skew_kl", {}),
    ("skew_rkl", {}),
    ("adaptive_kl", {}),
    ("tvd", {}),
    ("alpha_beta", {}),
]
CLIPPED_CASES = [
    (name, {**params, "clip": clip})
    for name, params in DENSE_CASES
    if DIVERGENCES[name].mix is None
    for clip in (0.003, 0.05)
]


def name_of(case) -> str:
    """The id of a case in pytest's output."""
    name, params = case
    return " ".join([name, *(f"{key}={value}" for key, value in params.items())])
