"""What lvkam is measured against: the straightforward port, other KAN libraries, and the matrix products alone.

The port is what one writes first, and what the reference does: the Cox-de Boor recursion step by step, einsum over
the basis functions, each function's values before their sum over the inputs, the prior's functions evaluated anew at
its quadrature nodes, a (B, S, D) tensor of likelihoods, gradients by autograd throughout. `contracted` sums over inputs
and basis functions at once, as the more careful libraries do. A test compares its loss with lvkam's.

Letters: N points, I inputs, O outputs, K basis functions, B images, S samples, Q latent coordinates, P components,
n quadrature nodes, D data dimensions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvkam.model import LVKAM
from lvkam.prior import MixturePrior
from lvkam.univariate import UnivariateFunctions


def cox_de_boor(x: Tensor, grid: Tensor, degree: int) -> Tensor:
    """B-splines by the recursion, as every KAN tutorial has it: (N, I), (I, M) -> (N, I, K)."""
    x = x.unsqueeze(-1)
    basis = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
    for d in range(1, degree + 1):
        left = (x - grid[:, : -(d + 1)]) / (grid[:, d:-1] - grid[:, : -(d + 1)])
        right = (grid[:, d + 1 :] - x) / (grid[:, d + 1 :] - grid[:, 1:-d])
        basis = left * basis[:, :, :-1] + right * basis[:, :, 1:]
    return basis


class PortedLayer(nn.Module):
    """A layer of B-splines with the parameters of one of lvkam's, evaluated in the straightforward way."""

    def __init__(self, layer: UnivariateFunctions, *, contracted: bool = False):
        super().__init__()
        self.contracted = contracted
        self.degree, self.activation = layer.family.degree, layer.family.activation
        self.register_buffer("grid", layer.grid.clone())
        self.coef = nn.Parameter(layer.coef.detach().clone())
        self.w_base, self.w_spline = (
            nn.Parameter(layer.w_base.detach().clone()),
            nn.Parameter(layer.w_spline.detach().clone()),
        )

    def functions(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, I, O)."""
        spline = torch.einsum("nik,iko->nio", cox_de_boor(x, self.get_buffer("grid"), self.degree), self.coef)
        return self.w_base * self.activation(x).unsqueeze(-1) + self.w_spline * spline

    def forward(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, O)."""
        if not self.contracted:
            return self.functions(x).sum(1)
        basis = cox_de_boor(x, self.get_buffer("grid"), self.degree)
        spline = torch.einsum("nik,iko->no", basis, self.coef * self.w_spline.unsqueeze(1))
        return spline + self.activation(x) @ self.w_base


class PortedModel(nn.Module):
    """LV-KAM with a uniform reference and a prior of one layer, ported in the straightforward way."""

    def __init__(self, model: LVKAM, nodes: Tensor, *, contracted: bool = False):
        super().__init__()
        prior_layer = model.prior.layers[0]
        assert isinstance(prior_layer, UnivariateFunctions)
        self.prior = PortedLayer(prior_layer)
        self.mixture_logits = nn.Parameter(model.prior.mixture_logits.detach().clone())
        self.layers = nn.ModuleList(
            PortedLayer(layer, contracted=contracted)
            for layer in model.generator.layers
            if isinstance(layer, UnivariateFunctions)
        )
        self.likelihood_std = model.likelihood_std
        self.register_buffer("nodes", nodes.clone())

    def generator(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = layer(z)
        return z

    def sample(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """Inverse transform, a CDF for each sample: (S, Q)."""
        nodes = self.get_buffer("nodes")  # (Q, n)
        with torch.no_grad():
            latent_dim = len(nodes)
            uniform = torch.rand(2, num_samples, latent_dim, generator=rng)
            weights = torch.softmax(self.mixture_logits, -1).cumsum(-1)
            component = (uniform[0].unsqueeze(-1) > weights).sum(-1).clamp(max=weights.shape[1] - 1)
            density = torch.exp(self.prior.functions(nodes.T)).permute(1, 2, 0)  # (Q, P, n)
            chosen = density[torch.arange(latent_dim), component]  # (S, Q, n)
            cdf = F.pad(((chosen[..., 1:] + chosen[..., :-1]) / 2 * nodes.diff(dim=-1)).cumsum(-1), (1, 0))
            cdf = cdf / cdf[..., -1:]
            cell = torch.searchsorted(cdf, uniform[1].unsqueeze(-1), right=True).clamp(1, nodes.shape[1] - 1)
            below, above = cdf.gather(-1, cell - 1), cdf.gather(-1, cell)
            share = (uniform[1].unsqueeze(-1) - below) / (above - below).clamp(min=1e-12)
            columns = nodes.expand(num_samples, -1, -1)
            left, right = columns.gather(-1, cell - 1), columns.gather(-1, cell)
            return (left + share * (right - left)).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised by the trapezoid rule, in the graph: (S, Q) -> (S,)."""
        nodes = self.get_buffer("nodes")
        density = torch.exp(self.prior.functions(nodes.T)).permute(1, 2, 0)
        log_normaliser = torch.trapezoid(density, nodes.unsqueeze(1)).log()  # (Q, P)
        log_weights = torch.log_softmax(self.mixture_logits, -1)
        return torch.logsumexp(self.prior.functions(z) + log_weights - log_normaliser, -1).sum(-1)

    def loss(self, x: Tensor, num_samples: int, rng: torch.Generator) -> Tensor:
        return self.loss_at(x, self.sample(num_samples, rng))

    def loss_at(self, x: Tensor, z: Tensor) -> Tensor:
        """Importance sampling with the likelihood of every pair, element by element."""
        image = torch.sigmoid(self.generator(z)).clamp(1e-7, 1 - 1e-7)  # (S, D)
        x = x.unsqueeze(1)  # (B, 1, D)
        log_likelihood = (x * image.log() + (1 - x) * (1 - image).log()).sum(-1) / (2 * self.likelihood_std**2)
        weights = torch.softmax(log_likelihood, -1).detach()
        return -(weights * (log_likelihood + self.log_prob(z))).sum(1).mean()


class Floor:
    """A stack of layers as matrix products alone: [N, (K+1) I] x [(K+1) I, O], and its two gradients.

    Args:
        layers: I and O of each.
        num_features: K + 1.
        num_points: N.
        input_grad: whether the first layer's inputs have a gradient; in training, latents have none.
    """

    def __init__(self, layers: list[tuple[int, int]], num_features: int, num_points: int, *, input_grad: bool = True):
        self.input_grad = input_grad
        self.parts = [
            (
                torch.rand(num_points, i * num_features),
                torch.rand(i * num_features, o),
                torch.rand(num_points, o),
            )
            for i, o in layers
        ]

    def forward(self) -> None:
        for features, weight, _ in self.parts:
            torch.mm(features, weight)

    def __call__(self) -> None:
        self.forward()
        for index, (features, weight, grad) in reversed(list(enumerate(self.parts))):
            torch.mm(features.T, grad)
            if index > 0 or self.input_grad:
                torch.mm(grad, weight.T)


def prior_floor(prior: MixturePrior, num_samples: int) -> Callable[[], None]:
    """A step's products in the prior: energies at nodes and samples, and those that lead to their gradients."""
    layer, p, q = prior.layers[0], prior.num_components, prior.latent_dim
    assert isinstance(layer, UnivariateFunctions)
    features = layer.coef.shape[1] + 1
    n = prior.table().nodes.shape[1]
    weight, at_nodes, at_samples = (
        torch.rand(q, features, p),
        torch.rand(q, n, features),
        torch.rand(q, num_samples, features),
    )
    mass, grad = torch.rand(q, p, n), torch.rand(q, num_samples, p)

    def products() -> None:
        torch.bmm(weight.transpose(1, 2), at_nodes.transpose(1, 2))
        torch.bmm(mass, at_nodes)
        torch.bmm(at_samples, weight)
        torch.bmm(at_samples.transpose(1, 2), grad)

    return products


def other_libraries(
    widths: list[int], grid_size: int, degree: int, left_out: Set[str] = frozenset()
) -> tuple[dict[str, nn.Module], list[str]]:
    """Other KAN libraries, as far as they are installed and work here, by name; and why the others are missing."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "inkan": lambda: _inkan(widths, grid_size, degree, "local"),
        "inkan, dense": lambda: _inkan(widths, grid_size, degree, "dense"),
        "flashkan": lambda: _flashkan(widths, grid_size, degree),
        "pykan": lambda: _pykan(widths, grid_size, degree),
    }
    found: dict[str, nn.Module] = {}
    missing: list[str] = []
    for name in [name for name in builders if name not in left_out]:
        try:
            found[name] = builders[name]()
            found[name](torch.rand(4, widths[0]))  # some compile when first called
        except (ImportError, RuntimeError, OSError, AttributeError, TypeError) as error:
            found.pop(name, None)
            missing.append(f"{name} is left out: {str(error).splitlines()[0]} (pip install -e .[bench])")
    return found, missing


def _inkan(widths: list[int], grid_size: int, degree: int, mode: str) -> nn.Module:
    network = importlib.import_module("inkan").KANNetwork
    return network(widths, grid_size=grid_size, spline_order=degree, grid_range=(0.0, 1.0), basis_mode=mode)


def _flashkan(widths: list[int], grid_size: int, degree: int) -> nn.Module:
    return importlib.import_module("flashkan").KANNetwork(widths, grid_size=grid_size, spline_order=degree)


class _PykanStack(nn.Module):
    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return x


def _pykan(widths: list[int], grid_size: int, degree: int) -> nn.Module:
    layer = importlib.import_module("kan.KANLayer").KANLayer
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return _PykanStack([layer(i, o, num=grid_size, k=degree, grid_range=[0, 1]) for i, o in pairs])
