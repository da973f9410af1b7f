"""`FusedAdam` and `FusedSGD`, one tensor after the other."""

import torch

from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse, refuse_options

STATE_DTYPES = (torch.float32, torch.bfloat16)


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (`adam_w_mode`, AdamW) or with L2 regularisation.

    Each group counts its own `step`, an int in `param_groups`; the state of a parameter is `exp_avg`, `exp_avg_sq` and
    with master_weights `master_param`. The arithmetic is fp32, float64 for float64 parameters. Equivalent:

        g = grad                                       (+ weight_decay * p without adam_w_mode)
        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²
        p = p - lr ((m / c1) / (sqrt(v / c2) + eps))   (- lr weight_decay p with adam_w_mode)

    with c = 1 - beta^step, or 1 without bias_correction.

    Args:
        master_weights: keeps an fp32 copy of fp16 and bf16 parameters and steps on that.
        exp_avg_dtype, exp_avg_sq_dtype: fp32 or bf16.
        use_decoupled_grad: reads `p.decoupled_grad` in place of `p.grad`.
        store_param_remainders: accepted; the whole fp32 copy is kept, which has the same value.

    Raises:
        NotOnCPUBackend: amsgrad, capturable, fp16 or fp8 states.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        capturable: bool = False,
        master_weights: bool = False,
        master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False,
        store_param_remainders: bool = False,
        set_grad_none: bool | None = None,
    ) -> None:
        refuse_options("FusedAdam", {"amsgrad": amsgrad, "capturable": capturable})
        self.name_to_dtype_map = {
            "exp_avg": exp_avg_dtype,
            "exp_avg_sq": exp_avg_sq_dtype,
            "master_param": master_weight_dtype,
        }
        _refuse_state_dtypes(self.name_to_dtype_map)
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        self.adam_w_mode = 1 if adam_w_mode else 0
        self.capturable = False
        self.master_weights = master_weights
        self.master_weight_dtype = master_weight_dtype
        self.exp_avg_dtype = exp_avg_dtype
        self.exp_avg_sq_dtype = exp_avg_sq_dtype
        self.use_decoupled_grad = use_decoupled_grad
        self.store_param_remainders = False
        self.set_grad_none = set_grad_none

    @property
    def _gradient_name(self) -> str:
        return "decoupled_grad" if self.use_decoupled_grad else "grad"

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Drops the gradients, or zeroes them with set_to_none=False."""
        if set_to_none is None:
            set_to_none = True if self.set_grad_none is None else self.set_grad_none
        for group in self.param_groups:
            for p in group["params"]:
                grad = getattr(p, self._gradient_name, None)
                if set_to_none:
                    setattr(p, self._gradient_name, None)
                elif grad is not None:
                    grad.detach_().zero_()

    def initialize_state(self, param: torch.Tensor, store_param_remainders: bool = False) -> None:
        """Creates the state of a parameter before its first step, as loading a checkpoint needs it."""
        state = self.state[param]
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(param, dtype=self._stored_dtype(param, name))
        if self.master_weights:
            state["master_param"] = param.detach().to(self._stored_dtype(param, "master_param"), copy=True)

    def _stored_dtype(self, param: torch.Tensor, state_name: str) -> torch.dtype:
        return torch.float64 if param.dtype == torch.float64 else self.name_to_dtype_map[state_name]

    def get_unscaled_state(self, param: torch.Tensor, state_name: str) -> torch.Tensor:
        """A state in fp32; the stored tensor itself if it is fp32."""
        state = self.state[param][state_name]
        return state.to(_wide(state.dtype))

    def set_scaled_state(self, param: torch.Tensor, state_name: str, unscaled_state: torch.Tensor) -> None:
        """Copies a state in, casting it to the dtype in which it is stored."""
        state = self.state[param]
        if state_name not in state:
            state[state_name] = torch.empty_like(param, dtype=self._stored_dtype(param, state_name))
        state[state_name].copy_(unscaled_state)

    def state_dict(self) -> dict:
        """As torch's, with every state in fp32."""
        saved = super().state_dict()
        saved["state"] = {
            index: {name: value.to(_wide(value.dtype)) for name, value in state.items()}
            for index, state in saved["state"].items()
        }
        return saved

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but torch casts states to the parameter's dtype and here they keep their own."""
        super().load_state_dict(state_dict)
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(indices, params, strict=True):
            if index in state_dict["state"]:
                self.state[param] = {}
                for name, value in state_dict["state"][index].items():
                    if value is not None:
                        self.set_scaled_state(param, name, value)

    @torch.no_grad()
    def step(self, closure=None, grad_scaler=None):
        """One update of every parameter that has a gradient. Returns the closure's loss, if there is one."""
        refuse_options("FusedAdam.step", {"grad_scaler": grad_scaler})
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            for param in group["params"]:
                if not self.state[param]:
                    self.initialize_state(param)
                grad = getattr(param, self._gradient_name, None)
                if grad is not None:
                    self._update(param, grad, group)
        return loss

    def _update(self, param: torch.Tensor, grad: torch.Tensor, group: dict) -> None:
        state = self.state[param]
        wide = {name: self.get_unscaled_state(param, name) for name in state}
        target = wide["master_param"] if self.master_weights else param.to(_wide(param.dtype))
        adam_update(target, grad.to(target.dtype), wide["exp_avg"], wide["exp_avg_sq"], group, bool(self.adam_w_mode))
        for name, value in wide.items():
            if value is not state[name]:
                state[name].copy_(value)
        if target is not param:
            param.copy_(target)


def adam_update(
    p: torch.Tensor,
    g: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    group: dict,
    decoupled: bool,
) -> None:
    """One Adam step in place on p, m and v, all of one shape and dtype; `group` holds the settings and the step."""
    (beta1, beta2), lr, decay, step = group["betas"], group["lr"], group["weight_decay"], group["step"]
    c1, c2 = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1.0, 1.0)
    if not decoupled and decay:
        g = g.add(p, alpha=decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (v / c2).sqrt_().add_(group["eps"])
    if decoupled and decay:
        p.mul_(1 - lr * decay)
    p.addcdiv_(m, denominator, value=-lr / c1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _refuse_state_dtypes(dtypes: dict[str, torch.dtype]) -> None:
    for name, dtype in dtypes.items():
        allowed = STATE_DTYPES if name != "master_param" else (torch.float32,)
        if dtype not in allowed:
            refuse(f"FusedAdam with {name} in {dtype}", f"use one of {', '.join(map(str, allowed))}")


class FusedSGD(torch.optim.SGD):
    """torch's SGD. `materialize_master_grads` and `set_grad_none` change nothing here.

    Raises:
        NotOnCPUBackend: wd_after_momentum.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        wd_after_momentum: bool = False,
        materialize_master_grads: bool = True,
        set_grad_none: bool | None = None,
    ) -> None:
        refuse_options("FusedSGD", {"wd_after_momentum": wd_after_momentum})
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            foreach=False,
        )
