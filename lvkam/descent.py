"""Optimisers that lower a function which stays the same within a step: they choose a direction d, and search along it.

With g the gradient, H the Hessian, B an estimate of its inverse, s and y the changes of place and gradient in a step,

    gd               d = -g
    cg               d = -g + max(0, g.y / |g_-|^2) d_-      Polak and Ribiere; y, g_- and d_- of the step before
    bfgs, l-bfgs     d = -B g,  B y = s                      the second keeps m pairs (s, y) instead of B
    newton           d = -|H|^-1 g                           |H| having the absolute values of H's eigenvalues
    interior-point   d = -(H + tau I)^-1 g                   tau >= 0 such that this is positive definite

(Nocedal and Wright 2006, equations 5.44 and 6.17, algorithms 7.4 and 3.3.) There being no constraints, nothing else is
left of an interior-point method. Nelder and Mead's simplex needs values alone. The function may be another in the next
step, of other images: pairs and differences are taken within one step, both gradients being of the same function.

Letters: n parameters in all, m pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy  # its parts when they are first used: a quarter of a second, in vain with most optimisers
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lvkam.line_search import Constants, search_line
from lvkam.univariate import twice_differentiable

LEAST_SHIFT = 1e-3
"""Of a Hessian that is not positive definite, relative to its largest entry."""

SMALLEST_RATE = 1e-30
"""Of a first trial, the largest being its inverse: float32 holds both, and the steps that may follow."""

HESSIAN_ROWS = 32
"""Computed at a time."""

NELDER_MEAD_ITERATIONS = 50
"""In a step, which begins with a simplex of n + 1 corners around the present place."""

Function = Callable[[], Tensor]
"""The function at whatever the parameters are: (), differentiable."""


class FunctionOptimizer(Optimizer):
    """Lowers a function in each step, which it may evaluate wherever it likes.

    All that it remembers from step to step is in `state`, parameter by parameter, in tensors that are written in place.

    Args:
        parameters: what it may change.
        learning_rate: first trial of a search along a direction whose length means nothing.
        line_search: one of `LINE_SEARCHES`.
        constants: of the line search.
        memory: m, for L-BFGS.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float,
        line_search: str,
        constants: Constants,
        memory: int,
    ):
        super().__init__(parameters, {"lr": learning_rate})
        self.parameters: list[Tensor] = self.param_groups[0]["params"]
        self.sizes = [p.numel() for p in self.parameters]
        self.line_search, self.constants = line_search, constants
        self.failures = 0
        """Steps whose search came to nothing acceptable, since this object was made."""
        self.evaluations, self.length = 0, 0.0
        """Evaluations of the last step, and how far it went along its direction."""
        self._prepare(sum(self.sizes), memory)

    def _prepare(self, size: int, memory: int) -> None:
        """Make the state, all zeros: nothing is known yet."""

    @torch.no_grad()
    def step(self, closure: Function, value: float | None = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Lower a function.

        Args:
            closure: the function, the same whenever it is called in this step; it leaves `grad` alone.
            value: of the function at the present parameters, whose `grad` then is its gradient; evaluated if None.

        Returns:
            Its new value.

        Raises:
            FloatingPointError: a value, gradient or second derivative at the present parameters is not finite.
        """
        if value is None:
            value, gradient = self._evaluate(closure)
        else:
            gradient = self._flat([p.grad for p in self.parameters])
        if not (math.isfinite(value) and gradient.isfinite().all()):
            raise FloatingPointError(f"the function to be lowered is {value}, or its gradient is not finite")
        self.evaluations, self.length = 0, 0.0
        return self._descend(closure, value, gradient) if gradient.any() else value

    @property
    def rate(self) -> float:
        """The learning rate, as a first trial."""
        return min(max(self.param_groups[0]["lr"], SMALLEST_RATE), 1 / SMALLEST_RATE)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, into the tensors that are there, which parameters share."""
        own = {parameter: dict(state) for parameter, state in self.state.items()}
        super().load_state_dict(state_dict)
        for parameter, state in own.items():
            for key, tensor in state.items():
                tensor.copy_(self.state[parameter][key])
            self.state[parameter] = state

    def _descend(self, closure: Function, value: float, gradient: Tensor) -> float:
        place = self._flat(self.parameters)
        direction, first = self._direction(closure, gradient)
        slope = _dot(gradient, direction)
        if not slope < 0:  # rounding errors, or directions that stopped being conjugate
            self.restart()
            direction, first, slope = -gradient, self.rate, -_dot(gradient, gradient)
        last: tuple[float, Tensor] = 0.0, gradient

        def phi(t: float) -> tuple[float, float]:
            nonlocal last  # the step that is taken is most often the last one tried: its gradient is at hand then
            self._go_to(torch.add(place, direction, alpha=t))
            value, gradient = self._evaluate(closure)
            last = t, gradient
            return value, _dot(gradient, direction)

        found = search_line(self.line_search, phi, value, slope, first, self.constants)
        self.evaluations, self.length = found.evaluations, found.step
        if found.is_acceptable:
            if last[0] != found.step:
                phi(found.step)
            self._remember(last[1] - gradient, direction, found.step, gradient)
        else:
            self.failures += 1
            self.restart()
        self._go_to(torch.add(place, direction, alpha=found.step) if found.step else place)
        return found.value

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        """A direction, (n,), and the first step to try along it."""
        raise NotImplementedError

    def _remember(self, difference: Tensor, direction: Tensor, step: float, gradient: Tensor) -> None:
        """Learn from an acceptable step: y and d, (n,), the step along d, and g where it began, (n,)."""

    def restart(self) -> None:
        """Forget what was learnt of the function: it has become another, or no step could be found by it."""
        for state in self.state.values():
            for tensor in state.values():
                tensor.zero_()

    def _evaluate(self, closure: Function) -> tuple[float, Tensor]:
        """The value, infinite where the function cannot be evaluated at all, and the gradient, (n,)."""
        try:
            with torch.enable_grad():
                loss = closure()
                gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            return loss.item(), self._flat(gradients)
        except FloatingPointError:  # far from where the step began energies may have diverged
            return math.inf, self._zeros(sum(self.sizes))

    def _flat(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """One after the other, zeros for what is None: (n,)."""
        pairs = zip(tensors, self.parameters, strict=True)
        return torch.cat([torch.zeros_like(p).flatten() if t is None else t.flatten() for t, p in pairs])

    def _go_to(self, place: Tensor) -> None:
        for parameter, values in zip(self.parameters, place.split(self.sizes), strict=True):
            parameter.copy_(values.view_as(parameter))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def _shared(self, key: str, memory: Tensor, dim: int = 0) -> Tensor:
        """A tensor of which the state of each parameter holds its part, along the dimension of length n."""
        for parameter, part in zip(self.parameters, memory.split(self.sizes, dim), strict=True):
            self.state[parameter][key] = part.view_as(parameter) if memory.ndim == 1 else part
        return memory

    def _counted(self) -> Tensor:
        """A count of steps, (), that the states of all parameters hold; on the CPU, where torch has its own."""
        count = torch.zeros(())
        for parameter in self.parameters:
            self.state[parameter]["step"] = count
        return count


def _dot(a: Tensor, b: Tensor) -> float:
    """In float64: it decides what a search accepts."""
    return torch.dot(a.double(), b.double()).item()


def _curvature(change: Tensor, difference: Tensor) -> float | None:
    """y.s, or None where that cannot be told from zero, or the function curves down."""
    curvature, size = _dot(change, difference), math.sqrt(_dot(change, change) * _dot(difference, difference))
    limits = torch.finfo(change.dtype)
    return curvature if curvature > max(limits.eps * size, math.sqrt(limits.tiny)) else None


class GradientDescent(FunctionOptimizer):
    """Steepest descent."""

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        return -gradient, self.rate


class ConjugateGradients(FunctionOptimizer):
    """Polak and Ribiere's, which begin again with steepest descent where their factor is negative."""

    def _prepare(self, size: int, memory: int) -> None:
        self.direction = self._shared("direction", self._zeros(size))
        self.scaled_difference = self._shared("scaled_difference", self._zeros(size))  # y / |g_-|^2

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        factor = max(0.0, _dot(gradient, self.scaled_difference))
        return torch.sub(factor * self.direction, gradient), self.rate

    def _remember(self, difference: Tensor, direction: Tensor, step: float, gradient: Tensor) -> None:
        self.direction.copy_(direction)
        torch.div(difference, _dot(gradient, gradient), out=self.scaled_difference)


class BFGS(FunctionOptimizer):
    """Broyden, Fletcher, Goldfarb and Shanno's, with the whole matrix B, (n, n)."""

    def _prepare(self, size: int, memory: int) -> None:
        self.inverse_hessian = self._shared("inverse_hessian", self._zeros(size, size))
        self.count = self._counted()

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        return (-(self.inverse_hessian @ gradient), 1.0) if self.count else (-gradient, self.rate)

    def _remember(self, difference: Tensor, direction: Tensor, step: float, gradient: Tensor) -> None:
        change = step * direction
        curvature = _curvature(change, difference)
        if curvature is None:
            return
        if not self.count:  # equation 6.20
            self.inverse_hessian.fill_diagonal_(curvature / _dot(difference, difference))
        seen = self.inverse_hessian @ difference
        # (I - s y'/y.s) B (I - y s'/y.s) + s s'/y.s, as two changes of rank one, in place
        half = change * ((1 + _dot(difference, seen) / curvature) / (2 * curvature)) - seen / curvature
        self.inverse_hessian.addr_(change, half).addr_(half, change)
        self.count += 1


class LBFGS(FunctionOptimizer):
    """BFGS with limited memory, of the last m pairs."""

    def _prepare(self, size: int, memory: int) -> None:
        self.changes = self._shared("changes", self._zeros(memory, size), dim=1)
        self.differences = self._shared("differences", self._zeros(memory, size), dim=1)
        self.count = self._counted()  # of pairs so far, the next one's row being the remainder by m

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        count, memory = int(self.count), len(self.changes)
        if not count:
            return -gradient, self.rate
        rows = [k % memory for k in range(max(0, count - memory), count)]  # the oldest pair first
        pairs = [(self.changes[k], self.differences[k]) for k in rows]
        curvatures = [torch.dot(s, y).item() for s, y in pairs]
        if not all(curvature > 0 for curvature in curvatures):
            raise FloatingPointError("a remembered pair of L-BFGS has no curvature")
        direction, factors = -gradient, []
        for (s, y), curvature in zip(reversed(pairs), reversed(curvatures), strict=True):
            factors.append(torch.dot(s, direction).item() / curvature)
            direction.sub_(y, alpha=factors[-1])
        y = pairs[-1][1]
        direction.mul_(curvatures[-1] / _dot(y, y))  # equation 7.20
        for (s, y), curvature, factor in zip(pairs, curvatures, reversed(factors), strict=True):
            direction.add_(s, alpha=factor - torch.dot(y, direction).item() / curvature)
        return direction, 1.0

    def _remember(self, difference: Tensor, direction: Tensor, step: float, gradient: Tensor) -> None:
        change, row = step * direction, int(self.count) % len(self.changes)
        if _curvature(change, difference) is not None:
            self.changes[row], self.differences[row] = change, difference
            self.count += 1


class Newton(FunctionOptimizer):
    """Newton's, along which the function falls whatever the signs of its curvatures."""

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        values, vectors = torch.linalg.eigh(_hessian(closure, self.parameters))
        values = values.abs()
        # what the gradients' rounding errors make of directions without curvature
        floor = values.max() * len(values) * torch.finfo(gradient.dtype).eps
        along = (vectors.T @ gradient.double()) / torch.maximum(values, floor)
        return -(vectors @ along).to(gradient), 1.0


class InteriorPoint(FunctionOptimizer):
    """Newton's with a multiple of the identity added until Cholesky's factorisation exists (algorithm 3.3)."""

    def _direction(self, closure: Function, gradient: Tensor) -> tuple[Tensor, float]:
        hessian = _hessian(closure, self.parameters)
        diagonal, least = hessian.diagonal(), LEAST_SHIFT * hessian.abs().max().item()
        if not least:  # a plane
            return -gradient, self.rate
        lowest, shift = diagonal.min().item(), 0.0
        target = least - lowest if lowest <= 0 else 0.0
        while True:
            diagonal += target - shift
            shift = target
            factor, problem = torch.linalg.cholesky_ex(hessian)
            if not problem:
                return -torch.cholesky_solve(gradient.double().unsqueeze(1), factor).squeeze(1).to(gradient), 1.0
            target = max(2 * shift, least)


def _hessian(function: Function, parameters: Sequence[Tensor]) -> Tensor:
    """Second derivatives at the present parameters: (n, n), float64.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    sizes = [p.numel() for p in parameters]
    hessian = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64, device=parameters[0].device)
    with torch.enable_grad(), twice_differentiable():
        gradients = torch.autograd.grad(function(), parameters, create_graph=True, materialize_grads=True)
        gradient = torch.cat([g.flatten() for g in gradients])
        places = torch.arange(len(gradient), device=gradient.device)
        for rows, chosen in zip(hessian.split(HESSIAN_ROWS), places.split(HESSIAN_ROWS), strict=True):
            unit = F.one_hot(chosen, len(gradient)).to(gradient.dtype)
            parts = torch.autograd.grad(
                gradient, parameters, unit, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
            for columns, part in zip(rows.split(sizes, dim=1), parts, strict=True):
                if part is not None:
                    columns.copy_(part.reshape(len(chosen), -1))
    if not hessian.isfinite().all():
        raise FloatingPointError("a second derivative is not finite")
    return hessian.add_(hessian.T.clone()).div_(2)


class NelderMead(FunctionOptimizer):
    """Nelder and Mead's simplex, a new one in each step, with Gao and Han's factors for many parameters."""

    def _descend(self, closure: Function, value: float, gradient: Tensor) -> float:
        place = self._flat(self.parameters)

        def at(x: np.ndarray) -> float:
            self._go_to(torch.from_numpy(x).to(place))
            try:
                found = closure().item()
            except FloatingPointError:
                return math.inf
            return found if math.isfinite(found) else math.inf

        options = {"maxiter": NELDER_MEAD_ITERATIONS, "xatol": 0.0, "fatol": 0.0, "adaptive": True}
        found = scipy.optimize.minimize(at, place.double().cpu().numpy(), method="Nelder-Mead", options=options)
        new = torch.from_numpy(found.x).to(place) if found.fun < value else place
        self.failures += found.fun >= value
        self.evaluations, self.length = found.nfev, (new - place).norm().item()
        self._go_to(new)
        return min(found.fun, value)
