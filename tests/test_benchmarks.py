"""The benchmarks' own parts: the port computes what lvkam computes, and the harness measures what it says."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.harness import Report, Timing, as_text, bars, interleave, peak_memory
from benchmarking.peers import Floor, PortedLayer, PortedModel, cox_de_boor
from benchmarking.sampling import mlp_decoder
from benchmarking.scaling import exponent
from benchmarking.summary import as_markdown, tables
from lvkam.build import build_model
from lvkam.objectives import ImportanceSampling
from lvkam.splines import adaptive_knots, b_spline_basis, extend_grid
from lvkam.univariate import FunctionFamily, UnivariateFunctions
from tests.conftest import small_config, stream


def test_the_port_of_a_layer_is_the_layer() -> None:
    layer = UnivariateFunctions(3, 4, FunctionFamily(grid_size=6), stream(0))
    layer.update_grid(torch.rand(50, 3, generator=stream(1)))
    x = torch.rand(20, 3, generator=stream(2))
    for contracted in (False, True):
        torch.testing.assert_close(PortedLayer(layer, contracted=contracted)(x), layer(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_the_ported_recursion_is_the_basis(degree: int) -> None:
    x = torch.rand(40, 2, dtype=torch.float64, generator=stream(3))
    grid = extend_grid(adaptive_knots(x, 5, 0.1), degree)
    inside = x[(x < grid[:, -degree - 1]).all(1)]  # half-open at its last knot
    torch.testing.assert_close(cox_de_boor(inside, grid, degree), b_spline_basis(inside, grid, degree))


def test_the_port_trains_on_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients; the port integrates by the trapezoid rule, which errs by 1e-4 on these nodes."""
    model = build_model(small_config("MIX_PRIOR.quadrature_points=1024"), data_dim=5)
    with torch.no_grad():
        model.prior.layers[0].coef.normal_(generator=stream(4))  # pyright: ignore
    table = model.prior.table()
    z, x = model.prior.sample(40, stream(5), table), torch.rand(6, 5, generator=stream(6))
    port = PortedModel(model, table.nodes[:, 1:-1])
    monkeypatch.setattr(model.prior, "sample", lambda *_: z)
    ours, theirs = ImportanceSampling(40)(model, x, stream(7)), port.loss_at(x, z)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    ours.backward()
    theirs.backward()
    pairs = [(model.prior.mixture_logits, port.mixture_logits)]
    layers = [model.prior.layers[0], *model.generator.layers]
    for mine, its in zip(layers, [port.prior, *port.layers], strict=True):
        names = ("coef", "w_base", "w_spline")
        pairs += [(mine.get_parameter(name), its.get_parameter(name)) for name in names]
    for mine, its in pairs:
        assert mine.grad is not None
        assert its.grad is not None
        torch.testing.assert_close(mine.grad, its.grad, atol=2e-3 * float(its.grad.abs().max()), rtol=0)


def test_the_ports_draws_have_the_priors_quantiles() -> None:
    model = build_model(small_config("MIX_PRIOR.quadrature_points=1024"), data_dim=5)
    port = PortedModel(model, model.prior.table().nodes[:, 1:-1])
    levels = torch.linspace(0.1, 0.9, 9)
    ours, theirs = (torch.quantile(m.sample(20_000, stream(8)), levels, dim=0) for m in (model.prior, port))
    # a quantile of 20,000 draws has a standard error of at most 0.5 / sqrt(20,000) over a density near 1
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_the_floor_does_the_products_of_a_pass_and_its_gradients() -> None:
    floor = Floor([(3, 4), (4, 2)], num_features=5, num_points=7)
    shapes = [(tuple(features.shape), tuple(weight.shape), tuple(grad.shape)) for features, weight, grad in floor.parts]
    assert shapes == [((7, 15), (15, 4), (7, 4)), ((7, 20), (20, 2), (7, 2))]
    with FlopCounterMode(display=False) as counter:
        floor()
    assert counter.get_total_flops() == 3 * 2 * 7 * (15 * 4 + 20 * 2)
    with FlopCounterMode(display=False) as counter:
        Floor([(3, 4), (4, 2)], num_features=5, num_points=7, input_grad=False)()
    assert counter.get_total_flops() == 2 * 7 * (2 * 15 * 4 + 3 * 20 * 2)


def test_a_decoder_of_as_many_parameters() -> None:
    for wanted in (5_000, 300_000, 1_000_000):
        number = sum(p.numel() for p in mlp_decoder(101, 196, wanted).parameters())
        assert abs(number - wanted) < 2_000


def test_interleaving_takes_turns() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert "".join(calls) == "ab" + 3 * "aabb"
    assert all(len(timing.seconds) == 3 for timing in timings.values())
    slow, fast = Timing(np.array([2.0, 4.0, 90.0])), Timing(np.array([1.0, 1.0, 3.0]))
    assert slow.ratio(fast) == 4
    assert slow.median == 4
    assert fast.milliseconds() == {"ms": 1000, "q1": 1000, "q3": 2000}


def test_peak_memory_sees_what_is_freed_again() -> None:
    peak = peak_memory(lambda: torch.ones(2**24).sum())  # 64 MiB
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 < peak < 80


def test_exponents_of_power_laws() -> None:
    assert exponent((1, 2, 4, 8), [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1)
    assert exponent((10, 20, 40), [1.0, 4.0, 16.0]) == pytest.approx(2)


def test_a_report_is_text_csv_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("name", "A title", quick=True, folder=tmp_path / "new")
    report.add("first", [{"a": 1, "b": 0.123456}, {"a": 2, "c": "word"}])
    report.add("second", [{"a": 3}])
    assert "first" in capsys.readouterr().out
    report.write(lambda axes: bars(axes, ["x", "y"], [1.0, 20.0], "ms"))
    assert (tmp_path / "new" / "name.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "new" / "name.txt").read_text()
    assert text.startswith("A title\n")
    assert as_text([{"a": 1, "b": 0.123456}, {"a": 2, "c": "word"}]) in text
    with (tmp_path / "new" / "name.csv").open(newline="") as file:
        assert [row["a"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    found = tables(tmp_path / "new" / "name.csv")
    assert found == {"first": [{"a": "1", "b": "0.123456"}, {"a": "2", "c": "word"}], "second": [{"a": "3"}]}
    assert as_markdown(found["first"]) == ["| a | b | c |", "|---|---|---|", "| 1 | 0.1235 |  |", "| 2 |  | word |"]
