"""BayesBiNN: a Bernoulli posterior over the binary weights, which the Bayesian learning rule updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnnedge import schedules
from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.row_blocks import row_blocks
from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Defaults, Method, PhaseSize
from bnnedge.tasks.classification import Classification

EPSILON = 1e-10
"""Added to ``1 - w^2`` and ``1 - mu^2``. The published settings depend on it; see ``Bayesbinn``."""


@dataclass
class BayesbinnOptions(ActivationOptions):
    """Options of ``--method bayesbinn``."""

    posterior_lr: float = 1e-4
    """Learning rate alpha of the natural parameter lambda; --lr is that of the parameters that stay float."""
    posterior_lr_type: Literal["cos", "step", "exp", "constant"] = "cos"
    """Schedule of posterior_lr by epochs: cosine to 0, divided by 10 at 1/2 and at 3/4, exponential to a millionth, or
    constant."""
    posterior_lr_epochs: int | None = None
    """Length of that schedule in epochs, which may be more than are trained (none: the run's epochs)."""
    mc_steps: int = 1
    """Samples of the weights in one step, each with a pass forward and backward; 0: one pass with w = tanh(lambda)."""
    temperature: float = 1e-10
    """Temperature tau of the relaxed samples."""
    lambda_init: float = 10.0
    """Magnitude of lambda at the start, where it has the sign of the network's initial weight."""
    beta: float = 0.0
    """Momentum of the natural gradient, from 0 to below 1."""
    train_set_scale: float = 1.0
    """Factor on the number of training images in the likelihood; published is 10 for images that are augmented."""
    kl_weight: float = 1.0
    """Factor rho on the pull towards the prior."""
    prior: Literal["zero", "init"] = "zero"
    """Prior lambda_0: zero, or the posterior of the bayesbinn run that --init names, where lambda starts too."""
    evaluate_steps: int = 0
    """Number of networks, sampled from the posterior, whose outputs evaluation averages; 0 evaluates the mode."""
    evaluate_average: Literal["probabilities", "logits"] = "probabilities"
    """What evaluation averages: probabilities as in the paper, or logits as in the published code."""
    evaluate_mean: bool = False
    """Evaluate with the float weights mu = tanh(lambda) instead."""
    faithful: bool = False
    """Do as the published code does: mu is one step behind lambda, and the schedule one epoch ahead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("posterior_lr", "temperature", "lambda_init", "train_set_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("mc_steps", "evaluate_steps", "kl_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.posterior_lr_epochs is not None:
            if self.posterior_lr_epochs < 1:
                raise ConfigError(f"posterior_lr_epochs must be at least 1, got {self.posterior_lr_epochs}")
            if self.posterior_lr_type == "constant":
                raise ConfigError("posterior_lr_epochs is a schedule's; leave it out with posterior_lr_type constant")
        if not 0 <= self.beta < 1:
            raise ConfigError(f"beta must be from 0 to below 1, got {self.beta}")
        for name, known in (
            ("posterior_lr_type", ("cos", "step", "exp", "constant")),
            ("prior", ("zero", "init")),
            ("evaluate_average", ("probabilities", "logits")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.evaluate_mean and self.evaluate_steps:
            raise ConfigError("evaluate_mean and evaluate_steps are two ways of evaluation; choose one")


class _RelaxedSample(torch.autograd.Function):
    """``w = tanh((lambda + delta) / tau)``, backward ``g s`` with ``s = (1 - w^2 + e) / tau / (1 - mu^2 + e)``."""

    @staticmethod
    def forward(ctx: Any, natural: Tensor, mean_source: Tensor, temperature: float) -> Tensor:
        w = logistic_noise(natural).add_(natural).div_(temperature).tanh_()
        ctx.save_for_backward(w, mean_source)
        ctx.temperature = temperature
        return w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        w, mean_source = ctx.saved_tensors
        found = torch.empty_like(w)
        for rows in row_blocks(w):
            # This quotient must not be simplified: in float32 both sums become EPSILON alone, on which the published
            # settings rely.
            s = w[rows].square().neg_().add_(1).add_(EPSILON).div_(ctx.temperature)
            s.div_(mean_source[rows].tanh().square_().neg_().add_(1).add_(EPSILON))
            found[rows] = s.mul_(grads[0][rows])
        return found, None, None


class _MeanWithoutJacobian(torch.autograd.Function):
    """``mu = tanh(lambda)``, backward ``g``: the gradient at mu is the natural gradient at lambda."""

    @staticmethod
    def forward(ctx: Any, natural: Tensor) -> Tensor:
        return natural.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def logistic_noise(like: Tensor) -> Tensor:
    """``delta = log(u / (1 - u)) / 2`` with u uniform in (0, 1), so that ``sign(lambda + delta)`` is a sample of q."""
    smallest = 1e-7  # The generator may return 0, for which the noise would be infinite.
    return torch.rand_like(like).logit_(eps=smallest).mul_(0.5)


class BayesbinnBinarizer(ActivationBinarizer):
    """Takes the layer's weight for lambda: training uses relaxed samples of w, evaluation the mode of the posterior."""

    drawn: Tensor | None = None
    """The weights of the network that is evaluated; None stands for the mode."""

    def __init__(self, layer: BinaryLayer, options: BayesbinnOptions) -> None:
        super().__init__(options)
        self.options = options
        if options.prior == "init":
            self.register_buffer("prior", torch.zeros_like(layer.weight))
        if options.faithful:
            self.register_buffer("lagging", layer.weight.detach().clone())

    def mean_source(self, natural: Tensor) -> Tensor:
        """The lambda whose tanh is mu: the present one, or if ``faithful`` the one before the last step."""
        return self.lagging if self.options.faithful else natural  # type: ignore[return-value]

    def binarize_weight(self, weight: Tensor) -> Tensor:
        if not self.training:
            return sign(self.mean_source(weight)) if self.drawn is None else self.drawn
        if self.options.mc_steps == 0:
            return _MeanWithoutJacobian.apply(weight)  # type: ignore[no-any-return, no-untyped-call]
        source = self.mean_source(weight).detach()
        return _RelaxedSample.apply(weight, source, self.options.temperature)  # type: ignore[no-any-return, no-untyped-call]


class NaturalGradient(torch.optim.Optimizer):
    """``M <- beta M + (1 - beta) (N g + rho (lambda - lambda_0))``, ``lambda <- lambda - alpha M / (1 - beta^t)``.

    g is the ``grad`` of a parameter: the mean of s dL/dw over the samples of the weights, with L the mean loss of an
    image. N is ``images``, rho is ``kl_weight``. ``priors`` holds the lambda_0 of each parameter, where None stands for
    0. ``alpha(step)`` is the learning rate in a step, counted from 0.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        priors: Sequence[Tensor | None],
        *,
        images: float,
        alpha: Callable[[int], float],
        beta: float = 0.0,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__([{"params": list(parameters), "step": 0}], {})
        self._priors = list(priors)
        self._images, self._alpha, self._beta, self._kl_weight = images, alpha, beta, kl_weight

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alpha, beta = self._alpha(group["step"]), self._beta
            group["step"] += 1
            for parameter, prior in zip(group["params"], self._priors, strict=True):
                if parameter.grad is None:
                    continue
                pull = parameter if prior is None else parameter - prior
                update = (parameter.grad * self._images).add_(pull, alpha=self._kl_weight)
                if beta > 0:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    update = state["momentum"].mul_(beta).add_(update, alpha=1 - beta)
                parameter.add_(update, alpha=-alpha / (1 - beta ** group["step"]))


class Bayesbinn(Method[BayesbinnOptions]):
    """Learns a posterior over binary weights: ``q(w = +1) = sigmoid(2 lambda)``, with mean ``mu = tanh(lambda)``.

    With N the number of training images times ``train_set_scale``, tau the temperature, S = ``mc_steps`` and L the mean
    loss of an image, a step is

    1. S times: ``u ~ U(0, 1)``, ``delta = log(u / (1 - u)) / 2``, ``w = tanh((lambda + delta) / tau)``,
       ``G += s dL/dw / S`` with ``s = (1 - w^2 + e) / (tau (1 - mu^2 + e))``, e = 1e-10. With S = 0
       it is ``w = mu`` and ``G = dL/dw``;
    2. ``M <- beta M + (1 - beta) (N G + rho (lambda - lambda_0))``, rho = ``kl_weight``;
    3. ``lambda <- lambda - alpha M / (1 - beta^t)``. For beta = 0 and rho = 1 this is the natural-gradient step
       ``lambda <- (1 - alpha) lambda - alpha (N G - lambda_0)``.

    Evaluation and the deploy form take the mode ``sign(lambda)``. With ``evaluate_steps`` M, evaluation takes the
    average output of M networks that are sampled from q, the same ones for every image and in every call. With
    ``evaluate_mean`` it takes the weights mu. Exported files always hold the mode.

    In float32, tanh is exactly -1 or +1 from a magnitude of 9.02 on. So with the default ``lambda_init`` and
    ``temperature``, s is 1e-10 / tau / 1e-10 = 1e10, and the first step makes lambda so large that the noise no longer
    matters. From there on w = sign(lambda), with lambda a moving average of -s N dL/dw. Float64 does not behave so.
    The average then goes over some 1 / ``posterior_lr`` steps, so that runs of few steps need more than the published
    1e-4.

    Continual learning: after a first task,
    ``bnnedge train --method bayesbinn --temperature 1e-2 --prior init --init runs/task1 ... --out runs/task2``
    learns the second with the first one's posterior as prior. ``python -m bnnedge.benchmarks.continual`` measures it.

    Differs from the paper: only the weights of binary layers have a posterior; all other parameters are trained by the
    run's optimizer.

    Differs from the published code, unless ``faithful``: mu, in s and in the mode, is that of the present lambda; there
    it is that of the lambda before the last step. Epoch e of E has the learning rate at time e / E; there it is
    (e + 1) / E, with which the last epoch learns nothing.

    Differs from the published code in any case: lambda starts with the signs of the network's weights, there with
    random ones. ``posterior_lr_type="step"`` has two milestones, there also epochs 150, 250, 350 and 450. A second
    published code has ``--beta 0.99``, leaves out lambda_0, and follows a cosine of 500 epochs in runs of 190 and 290
    (``--posterior-lr-epochs 500``). Its mu is one step behind too, its schedule is not ahead.

    Meng, Bachmann, Khan 2020, "Training Binary Neural Networks using the Bayesian Learning Rule", ICML,
    arXiv:2002.10778.
    """

    paper = "Meng et al. 2020, BayesBiNN, arXiv:2002.10778"
    Options = BayesbinnOptions
    defaults = Defaults(optimizer="adam", lr=1e-2)
    samples_weights = True

    @property
    def passes(self) -> int:
        return max(self.options.mc_steps, 1)

    @property
    def init_method(self) -> str | None:
        return "bayesbinn" if self.options.prior == "init" else None

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return BayesbinnBinarizer(layer, self.options)

    @torch.no_grad()
    def start_phase(self, model: nn.Module, index: int) -> None:
        for layer in binary_layers(model).values():
            binarizer = layer.binarizer
            assert isinstance(binarizer, BayesbinnBinarizer)
            if self.options.prior == "init":
                binarizer.prior.copy_(layer.weight)  # type: ignore[operator]
            else:
                layer.weight.copy_(self.options.lambda_init * sign(layer.weight))
            self._note_lambda(layer)

    def make_optimizer(self, model: nn.Module, size: PhaseSize) -> NaturalGradient:
        layers = list(binary_layers(model).values())
        return NaturalGradient(
            [layer.weight for layer in layers],
            [getattr(layer.binarizer, "prior", None) for layer in layers],
            images=size.train_images * self.options.train_set_scale,
            alpha=lambda step: self.alpha(step // size.steps_per_epoch, size.epochs),
            beta=self.options.beta,
            kl_weight=self.options.kl_weight,
        )

    def alpha(self, epoch: int, epochs: int) -> float:
        """Learning rate of lambda in epoch ``epoch``, counted from 0, of ``epochs``."""
        start, kind = self.options.posterior_lr, self.options.posterior_lr_type
        time, length = epoch + self.options.faithful, self.options.posterior_lr_epochs or epochs
        if kind == "cos":
            return schedules.cosine(time, length, start, 1e-16)
        if kind == "step":
            return schedules.steps(time, (length / 2, 3 * length / 4), start, 0.1)
        if kind == "exp":
            return schedules.staircase(time, 1, start, math.pow(1e-6, 1 / length))
        return start

    def before_step(self, model: nn.Module) -> None:
        for layer in binary_layers(model).values():
            self._note_lambda(layer)

    @torch.no_grad()
    def _note_lambda(self, layer: BinaryLayer) -> None:
        if self.options.faithful:
            layer.binarizer.lagging.copy_(layer.weight)  # type: ignore[operator]

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """The output of the mode; or the task's average over one network with the weights mu, or over several that
        are sampled from the posterior."""
        if not self.options.evaluate_steps and not self.options.evaluate_mean:
            return super().predict(model, images)
        layers = list(binary_layers(model).values())
        # An own generator on the CPU draws the same networks on every device and for every batch, and leaves the random
        # numbers of the training alone.
        generator = torch.Generator().manual_seed(0)
        outputs = []
        try:
            for _ in range(max(self.options.evaluate_steps, 1)):
                for layer in layers:
                    layer.binarizer.drawn = self._draw(layer.weight, generator)
                outputs.append(super().predict(model, images))
        finally:
            for layer in layers:
                layer.binarizer.drawn = None  # type: ignore[assignment]
        stacked = torch.stack(outputs)
        task = Classification(stacked.shape[2]) if self.task is None else self.task
        return task.average(stacked, self.options.evaluate_average)

    def _draw(self, natural: Tensor, generator: torch.Generator) -> Tensor:
        if self.options.evaluate_mean:
            return natural.tanh()
        u = torch.rand(natural.shape, generator=generator).to(natural)
        return torch.where(u < positive_probability(natural), 1.0, -1.0).to(natural)

    @torch.no_grad()
    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """The mean magnitude of lambda, and the mean of ``1 - |mu|``, which is 0 for a posterior without doubt."""
        return {
            "latent_magnitude": float(layer.weight.abs().mean()),
            "distance_to_binary": float((1 - layer.weight.tanh().abs()).mean()),
        }


def positive_probability(natural: Tensor) -> Tensor:
    """``q(w = +1) = sigmoid(2 lambda)``."""
    return torch.sigmoid(2 * natural)
