"""Optimisers that lower a function: Rosenbrock's, quadratic ones with closed forms, the loss of small real models."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lvkam.build import build_config_optimizer, build_model, build_objective
from lvkam.config import SEARCH_ALONG_LINES
from lvkam.data import Dataset
from lvkam.descent import BFGS, LBFGS, NELDER_MEAD_ITERATIONS, ConjugateGradients, FunctionOptimizer, Newton, _hessian
from lvkam.experiment import load_config_dataset
from lvkam.line_search import LINE_SEARCHES, Constants
from lvkam.optimizers import SEARCHING, build_optimizer, rate_factor
from lvkam.training import random_stream
from tests.conftest import small_config, stream

WAYS = [(name, search) for name in SEARCH_ALONG_LINES for search in LINE_SEARCHES] + [("neldermead", "morethuente")]
EXACT = Constants(1e-10, 1e-9)
"""With which a strong Wolfe step is where the slope vanishes."""


def parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]


def optimizer_of(name: str, of: list[nn.Parameter], rate: float, *arguments: object) -> FunctionOptimizer:
    optimizer = build_optimizer(name, of, rate, *arguments)  # pyright: ignore[reportArgumentType]
    assert isinstance(optimizer, FunctionOptimizer)
    return optimizer


def rosenbrock(x: nn.Parameter, y: nn.Parameter) -> Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@pytest.mark.parametrize(("name", "search"), WAYS)
def test_rosenbrocks_function_is_lowered_to_its_minimum(name: str, search: str) -> None:
    x, y = parameters(-1.2, 1.0)
    rate = 0.02 if search == "backtrack" else 1e-3
    optimizer = optimizer_of(name, [x, y], rate, search, Constants(1e-4, 0.1 if name == "cg" else 0.9), 5)
    # steepest descent zigzags; backtracking never takes a longer step than the first, and so needs 10,500 to 1e-6
    steps, error = (2500, 0.03 if search == "backtrack" else 1e-6) if name == "gd" else (200, 1e-6)
    values = [rosenbrock(x, y).item()]
    for _ in range(steps):
        values.append(optimizer.step(functools.partial(rosenbrock, x, y)))
        if max(abs(x.item() - 1), abs(y.item() - 1)) < error:
            break
    assert (x.item(), y.item()) == pytest.approx((1, 1), abs=error)
    assert optimizer.failures == 0
    assert values[-1] == rosenbrock(x, y).item()
    rounding = 1e-6 if search == "hagerzhang" else 0.0
    assert all(b <= a * (1 + rounding) for a, b in zip(values[:-1], values[1:], strict=True))


@pytest.mark.parametrize(
    ("name", "rate", "schedule", "steps", "error"),
    # steepest descent is slow along the valley; adamw's decay draws back towards 0, so that its minimum is elsewhere
    [("adam", 0.05, "cosine", 4000, 1e-3), ("adamw", 0.05, "cosine", 4000, 0.06), ("rms", 0.01, "cosine", 12000, 2e-3),
     ("sgd", 0.002, "constant", 10000, 1e-3)],
)  # fmt: skip
def test_torchs_own_lower_it_as_well(name: str, rate: float, schedule: str, steps: int, error: float) -> None:
    x, y = parameters(-1.2, 1.0)
    optimizer = build_optimizer(name, [x, y], rate)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = rate * rate_factor(schedule, k + 1, steps, 100)
        optimizer.zero_grad()
        rosenbrock(x, y).backward()
        optimizer.step()
    assert (x.item(), y.item()) == pytest.approx((1, 1), abs=error)


SYMMETRIC = torch.randn(6, 6, dtype=torch.float64, generator=stream(1))
CONVEX = SYMMETRIC @ SYMMETRIC.T + 0.1 * torch.eye(6, dtype=torch.float64)
INDEFINITE = SYMMETRIC + SYMMETRIC.T
LINEAR = torch.randn(6, dtype=torch.float64, generator=stream(2))


class Quadratic:
    """x'A x/2 - b.x of two parameters, (2, 2) and (2,)."""

    def __init__(self, matrix: Tensor, linear: Tensor = LINEAR):
        self.matrix, self.linear = matrix, linear
        place = torch.randn(6, dtype=torch.float64, generator=stream(3))
        self.parameters = [nn.Parameter(place[:4].view(2, 2).clone()), nn.Parameter(place[4:].clone())]

    @property
    def x(self) -> Tensor:
        return torch.cat([p.flatten() for p in self.parameters])

    def __call__(self) -> Tensor:
        return self.x @ self.matrix @ self.x / 2 - self.linear @ self.x

    def gradient(self) -> Tensor:
        return (self.matrix @ self.x - self.linear).detach()

    @property
    def minimum(self) -> Tensor:
        return torch.linalg.solve(self.matrix, self.linear)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("search", LINE_SEARCHES)
@pytest.mark.parametrize("name", ["newton", "interior-point"])
def test_newtons_step_ends_in_the_minimum_of_a_convex_quadratic(name: str, search: str) -> None:
    f = Quadratic(CONVEX)
    optimizer = optimizer_of(name, f.parameters, 1e-9, search)
    optimizer.step(f)
    assert optimizer.length == 1.0
    assert close(f.x, f.minimum, 1e-9)


def test_newtons_step_takes_the_absolute_curvatures() -> None:
    f = Quadratic(INDEFINITE)
    values, vectors = np.linalg.eigh(INDEFINITE.numpy())
    assert values[0] < -1
    expected = f.x - torch.from_numpy(vectors @ np.diag(1 / np.abs(values)) @ vectors.T) @ f.gradient()
    before = f().item()
    optimizer_of("newton", f.parameters, 1e-9, "backtrack").step(f)
    assert close(f.x, expected, 1e-9)
    assert f().item() < before


def test_interior_points_step_is_shifted_until_the_hessian_is_positive_definite() -> None:
    f = Quadratic(INDEFINITE)
    before, gradient = f.x.detach().clone(), f.gradient()
    optimizer = optimizer_of("interior-point", f.parameters, 1e-9, "backtrack")
    optimizer.step(f)
    direction = (f.x.detach() - before) / optimizer.length
    shifts = (-gradient - INDEFINITE @ direction) / direction
    torch.testing.assert_close(shifts, shifts[:1].expand(6), rtol=1e-6, atol=0)
    lowest = -torch.linalg.eigvalsh(INDEFINITE)[0]
    assert lowest < shifts[0] < 4 * lowest  # no more than is needed, but for the doublings


def test_without_curvature_newtons_directions_stay_where_they_are() -> None:
    """Parameters that nothing depends on, as coefficients of intervals without inputs."""
    for name in ("newton", "interior-point"):
        x, y, idle = parameters(3.0, 2.0, 7.0)
        optimizer_of(name, [x, idle, y], 1.0).step(lambda x=x, y=y: x**2 + y**2 - x)
        assert (x.item(), y.item()) == pytest.approx((0.5, 0), abs=0.01)  # the second is damped
        assert idle.item() == 7


def test_the_hessian_is_the_matrix_of_a_quadratic() -> None:
    f = Quadratic(INDEFINITE)
    torch.testing.assert_close(_hessian(f, f.parameters), INDEFINITE, rtol=1e-12, atol=1e-12)
    many = [nn.Parameter(torch.ones(101, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    found = _hessian(lambda: (many[0] ** 3).sum() + many[0][0] ** 2, many)  # more than are computed at a time
    expected = torch.diag(torch.tensor([8.0, *[6.0] * 100, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_a_hessian_that_is_not_finite_is_told() -> None:
    (x,) = parameters(0.0)
    with pytest.raises(FloatingPointError, match="a second derivative is not finite"):
        optimizer_of("newton", [x], 1.0).step(lambda: x + x.abs() ** 1.5)


def test_bfgs_satisfies_the_secant_equation_and_ends_after_n_steps() -> None:
    """With exact searches on a quadratic its matrix becomes the inverse Hessian (Nocedal and Wright, theorem 6.4)."""
    f = Quadratic(CONVEX)
    optimizer = optimizer_of("bfgs", f.parameters, 0.1, "morethuente", EXACT)
    assert isinstance(optimizer, BFGS)
    for k in range(6):
        place, gradient = f.x.detach().clone(), f.gradient()
        optimizer.step(f)
        inverse = optimizer.inverse_hessian
        torch.testing.assert_close(inverse @ (f.gradient() - gradient), f.x.detach() - place, rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(inverse, inverse.T, rtol=1e-9, atol=1e-12)
        assert torch.linalg.eigvalsh(inverse)[0] > 0
        assert int(optimizer.count) == k + 1
    assert close(f.x, f.minimum, 1e-6)
    assert close(optimizer.inverse_hessian, torch.linalg.inv(CONVEX), 1e-5)
    rows = [optimizer.state[p]["inverse_hessian"] for p in f.parameters]
    assert torch.equal(torch.cat(rows), optimizer.inverse_hessian)


def dense_bfgs(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian of these pairs, as the equations have it (6.17 and 7.20)."""
    s, y = pairs[-1]
    matrix = (s @ y) / (y @ y) * torch.eye(len(s), dtype=s.dtype)
    for s, y in pairs:
        left = torch.eye(len(s), dtype=s.dtype) - torch.outer(s, y) / (s @ y)
        matrix = left @ matrix @ left.T + torch.outer(s, s) / (s @ y)
    return matrix


@pytest.mark.parametrize("memory", [1, 3, 100])
def test_lbfgs_is_bfgs_with_its_last_pairs(memory: int) -> None:
    f = Quadratic(CONVEX)
    optimizer = optimizer_of("l-bfgs", f.parameters, 0.01, "strongwolfe", Constants(), memory)
    assert isinstance(optimizer, LBFGS)
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(5):
        place, gradient = f.x.detach().clone(), f.gradient()
        optimizer.step(f)
        moved = f.x.detach() - place
        expected = -dense_bfgs(pairs[-memory:]) @ gradient if pairs else -gradient
        torch.testing.assert_close(moved, optimizer.length * expected, rtol=1e-6, atol=1e-9)
        pairs.append((moved, f.gradient() - gradient))
    kept = [optimizer.state[p]["changes"] for p in f.parameters]
    assert [tuple(part.shape) for part in kept] == [(memory, 4), (memory, 2)]
    rows = torch.cat(kept, 1)
    for k, (s, _) in list(enumerate(pairs))[-memory:]:
        torch.testing.assert_close(rows[k % memory], s, rtol=1e-9, atol=1e-12)
    assert not rows[len(pairs) :].any()


def test_conjugate_gradients_end_after_n_steps_of_conjugate_directions() -> None:
    f = Quadratic(CONVEX)
    optimizer = optimizer_of("cg", f.parameters, 0.1, "morethuente", EXACT)
    directions = []
    for _ in range(6):
        before = f.x.detach().clone()
        optimizer.step(f)
        directions.append((f.x.detach() - before) / optimizer.length)
    assert close(f.x, f.minimum, 1e-5)
    stacked = torch.stack(directions)
    products = stacked @ CONVEX @ stacked.T
    scale = products.diagonal().sqrt()
    torch.testing.assert_close(
        products / torch.outer(scale, scale), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-4
    )


def test_conjugate_gradients_begin_again_where_the_factor_is_negative() -> None:
    f = Quadratic(CONVEX)
    optimizer = optimizer_of("cg", f.parameters, 0.01, "backtrack")
    assert isinstance(optimizer, ConjugateGradients)
    optimizer.direction.copy_(f.gradient())
    optimizer.scaled_difference.copy_(-f.gradient())
    before = f.x.detach().clone()
    gradient = f.gradient()
    optimizer.step(f)
    torch.testing.assert_close(f.x.detach(), before - optimizer.length * gradient)
    optimizer.direction.copy_(f.gradient())  # uphill, and with a factor of 1e6
    optimizer.scaled_difference.copy_(1e6 * f.gradient() / f.gradient().square().sum())
    before, gradient = f.x.detach().clone(), f.gradient()
    optimizer.step(f)
    torch.testing.assert_close(f.x.detach(), before - optimizer.length * gradient)


@pytest.mark.parametrize("name", ["cg", "bfgs", "l-bfgs"])
def test_what_is_learnt_in_a_step_is_of_that_steps_function(name: str) -> None:
    """Both gradients are of the same images, though the next step has others."""
    first, second = Quadratic(CONVEX), Quadratic(CONVEX + torch.eye(6, dtype=torch.float64), -LINEAR)
    second.parameters = first.parameters
    optimizer = optimizer_of(name, first.parameters, 0.01)
    for f in (first, second):
        place, gradient = f.x.detach().clone(), f.gradient()
        optimizer.step(f)
        s, y = f.x.detach() - place, f.gradient() - gradient
        torch.testing.assert_close(f.matrix @ s, y)
        if isinstance(optimizer, LBFGS):
            row = int(optimizer.count) - 1
            torch.testing.assert_close(optimizer.changes[row], s)
            torch.testing.assert_close(optimizer.differences[row], y)
        elif isinstance(optimizer, BFGS):
            torch.testing.assert_close(optimizer.inverse_hessian @ y, s)
        else:
            assert isinstance(optimizer, ConjugateGradients)
            torch.testing.assert_close(optimizer.scaled_difference, y / gradient.square().sum())


@pytest.mark.parametrize("name", ["bfgs", "l-bfgs"])
def test_pairs_without_positive_curvature_are_left_out(name: str) -> None:
    (x,) = parameters(0.3)
    optimizer = optimizer_of(name, [x], 0.1, "backtrack")
    assert isinstance(optimizer, BFGS | LBFGS)
    optimizer.step(lambda: -(x**2))
    assert x.item() == pytest.approx(0.3 + 0.1 * 0.6)
    assert not any(tensor.any() for tensor in optimizer.state[x].values())


@pytest.mark.parametrize("name", SEARCHING)
def test_a_step_that_finds_nothing_changes_nothing_and_is_counted(name: str) -> None:
    """A gradient without the function that it would belong to: it claims a slope where all is level."""
    f = Quadratic(CONVEX)
    optimizer = optimizer_of(name, f.parameters, 0.1)
    optimizer.step(f)
    remembers = any(tensor.any() for state in optimizer.state.values() for tensor in state.values())
    assert remembers == (name in {"cg", "bfgs", "l-bfgs"})
    failures = optimizer.failures
    with torch.no_grad():
        f.parameters[0].add_(1)
    before = f.x.detach().clone()
    value = optimizer.step(lambda: (f() - f().detach()) + 5)
    assert value == 5
    assert torch.equal(f.x, before)
    assert optimizer.failures == failures + 1
    assert optimizer.length == 0
    assert not any(tensor.any() for state in optimizer.state.values() for tensor in state.values())
    assert optimizer.step(f) < f.__class__(CONVEX)().item()  # and it goes on


@pytest.mark.parametrize("name", SEARCHING)
def test_where_the_function_has_no_value_is_too_far(name: str) -> None:
    x, y = parameters(0.5, 0.5)

    def barrier() -> Tensor:
        if x.item() <= 0:
            raise FloatingPointError("too far")
        return x - 0.1 * torch.log(x) + y.square() - torch.log(1 - y)  # not a number where y > 1

    optimizer = optimizer_of(name, [x, y], 100.0)
    for _ in range(20):
        optimizer.step(barrier)
    y_minimum = (1 - math.sqrt(3)) / 2  # 2 y = 1 / (y - 1)
    assert (x.item(), y.item()) == pytest.approx((0.1, y_minimum), abs=0.01)


@pytest.mark.parametrize("name", SEARCHING)
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_what_is_not_finite_where_a_step_begins_is_told(spoilt: float, name: str) -> None:
    x, y = parameters(0.5, 0.5)
    optimizer = optimizer_of(name, [x, y], 0.1)
    with pytest.raises(FloatingPointError, match="the function to be lowered is"):
        optimizer.step(lambda: spoilt * (x + y))
    assert (x.item(), y.item()) == (0.5, 0.5)


@pytest.mark.parametrize("name", SEARCHING)
def test_at_a_stationary_point_nothing_is_done(name: str) -> None:
    x, y = parameters(0.0, 0.0)
    optimizer = optimizer_of(name, [x, y], 0.1)
    calls: list[None] = []

    def bowl() -> Tensor:
        calls.append(None)
        return x**2 + y**2

    assert optimizer.step(bowl) == 0
    assert len(calls) == 1
    assert optimizer.failures == 0


@pytest.mark.parametrize("rate", [1e-300, 5e-324, 1e300])
@pytest.mark.parametrize("name", SEARCHING)
def test_any_learning_rate_is_taken(name: str, rate: float) -> None:
    """In float32, which holds none of them."""
    x = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = optimizer_of(name, [x], rate)
    values = [optimizer.step(functools.partial(torch.norm, x)) for _ in range(3)]
    assert values[-1] <= 13**0.5
    assert x.isfinite().all()
    assert values[-1] < 3.6 or rate < 1


@pytest.mark.parametrize("name", SEARCHING)
def test_a_value_and_gradients_that_are_known_are_not_computed_again(name: str) -> None:
    plain, known = Quadratic(CONVEX), Quadratic(CONVEX)
    calls: list[None] = []

    def counted() -> Tensor:
        calls.append(None)
        return known()

    one, other = (optimizer_of(name, f.parameters, 0.01) for f in (plain, known))
    value = known()
    value.backward()
    assert one.step(plain) == other.step(counted, value.item())
    assert torch.equal(plain.x, known.x)
    hessians = name in {"newton", "interior-point"}
    assert len(calls) == other.evaluations + hessians


def test_nelder_meads_simplex_sees_values_alone_and_ends() -> None:
    f = Quadratic(CONVEX)
    seen: list[float] = []

    def values() -> Tensor:
        value = f()
        if not torch.is_grad_enabled():
            assert not value.requires_grad
            seen.append(value.item())
        return value

    before = f().item()
    optimizer = optimizer_of("neldermead", f.parameters, 0.1)
    assert optimizer.step(values) == min(seen) == f().item() < before
    assert optimizer.evaluations == len(seen)
    assert 6 + NELDER_MEAD_ITERATIONS < len(seen) < 7 + 3 * NELDER_MEAD_ITERATIONS


def test_saved_states_are_loaded_into_the_memory_that_parameters_share() -> None:
    for name in SEARCHING:
        one, other = Quadratic(CONVEX), Quadratic(CONVEX)
        optimizers = [optimizer_of(name, f.parameters, 0.01) for f in (one, other)]
        for _ in range(3):
            optimizers[0].step(one)
        with torch.no_grad():
            for p, q in zip(one.parameters, other.parameters, strict=True):
                q.copy_(p)
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        for _ in range(3):
            assert optimizers[0].step(one) == optimizers[1].step(other)
        assert torch.equal(one.x, other.x)


TINY = [
    "MIX_PRIOR.layer_widths=2, 2", "MIX_PRIOR.grid_size=2", "MIX_PRIOR.spline_degree=1",
    "KAN_LIKELIHOOD.expert_widths=2", "KAN_LIKELIHOOD.grid_size=2", "KAN_LIKELIHOOD.spline_degree=1",
    "TRAINING.img_resize=3, 3",
]  # fmt: skip
"""114 parameters, where a step costs as much as their square."""
TINIEST = [*TINY, "MIX_PRIOR.layer_widths=1, 2", "TRAINING.img_resize=2, 2"]
"""54 parameters."""


@functools.cache
def digits(size: str) -> Dataset:
    return load_config_dataset(small_config(f"TRAINING.img_resize={size}"))


def steps_on_digits(name: str, search: str) -> Iterator[tuple[Callable[[], float], FunctionOptimizer]]:
    """A small model of real digits after 0, 1, ... 20 steps, as its loss on images and samples that stay the same."""
    tiny = {**dict.fromkeys(("bfgs", "newton", "interior-point"), TINY), "neldermead": TINIEST}.get(name, [])
    config = small_config(
        f"OPTIMIZER.type={name}", f"LINE_SEARCH.type={search}", "THERMODYNAMIC_INTEGRATION.num_temps=1",
        "TRAINING.img_resize=14, 14", *tiny,
    )  # fmt: skip
    images = digits(", ".join(map(str, config.training.img_resize or ()))).train
    model, objective = build_model(config, images.shape[1]), build_objective(config)
    optimizer, rng = build_config_optimizer(config, model), random_stream(1, "training")
    assert isinstance(optimizer, FunctionOptimizer)

    @torch.no_grad()
    def loss() -> float:
        return float(objective(model, images, stream(5)))

    yield loss, optimizer
    for k in range(20):
        frozen = objective.freeze(model, images[25 * (k % 8) :][:25], rng)
        optimizer.zero_grad()
        frozen.estimate.loss.backward()
        optimizer.step(frozen.function, frozen.value.item())
        yield loss, optimizer


@pytest.mark.parametrize(("name", "search"), WAYS)
def test_twenty_steps_lower_the_loss_of_a_small_real_model(name: str, search: str) -> None:
    losses, failures = [], 0
    for index, (loss, optimizer) in enumerate(steps_on_digits(name, search)):
        failures = optimizer.failures
        if index in {0, 20}:
            losses.append(loss())
    # backtracking never takes a longer step than the learning rate, which is 0.005
    least = 0.05 if search == "backtrack" and name in {"gd", "cg", "l-bfgs"} else 0.1 * abs(losses[0])
    least = 0.01 if name == "neldermead" else least
    assert losses[1] < losses[0] - least
    assert failures <= 2


@pytest.mark.parametrize(("name", "rate"), [("adam", 0.005), ("adamw", 0.005), ("rms", 0.005), ("sgd", 0.2)])
def test_twenty_steps_of_torchs_own_lower_it_too(name: str, rate: float) -> None:
    config = small_config(f"OPTIMIZER.type={name}", f"OPTIMIZER.learning_rate={rate}", "TRAINING.img_resize=14, 14")
    images = digits("14, 14").train
    model, objective = build_model(config, images.shape[1]), build_objective(config)
    optimizer, rng = build_config_optimizer(config, model), random_stream(1, "training")
    with torch.no_grad():
        before = float(objective(model, images, stream(5)))
    for k in range(20):
        optimizer.zero_grad()
        objective(model, images[25 * (k % 8) :][:25], rng).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(objective(model, images, stream(5))) < 0.9 * before


def test_newtons_hessian_of_a_real_model_is_that_of_its_gradients() -> None:
    """By central differences, in float64, prior's normalisation and all."""
    config = small_config(*TINY, "OPTIMIZER.type=newton", "THERMODYNAMIC_INTEGRATION.num_temps=1")
    model, images = build_model(config, 9).double(), digits("3, 3").train[:25].double()
    function = build_objective(config).freeze(model, images, stream(1)).function
    of = list(model.parameters())
    hessian = _hessian(function, of)
    assert isinstance(build_config_optimizer(config, model), Newton)

    def gradient() -> Tensor:
        found = torch.autograd.grad(function(), of)
        return torch.cat([g.flatten() for g in found])

    shift = 1e-5 * torch.randn(len(hessian), dtype=torch.float64, generator=stream(2))
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, part in zip(of, shift.split([p.numel() for p in of]), strict=True):
                p.add_(sign * part.view_as(p))
        ends.append(gradient())
    difference = (ends[0] - ends[1]) / 2
    assert (hessian @ shift - difference).abs().max() < 1e-6 * difference.abs().max()
