"""The benchmarks' own parts: the port computes what lvkam computes, and the harness measures what it says."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarking import ablations, quality
from benchmarking.harness import Report, Timing, as_text, bars, interleave, peak_memory
from benchmarking.peers import Floor, PortedLayer, PortedModel, cox_de_boor
from benchmarking.quality_tables import draw_nll, grouped, spread, targets
from benchmarking.rivals import LEBM, VAE, StudentT, average, langevin, last, train
from benchmarking.sampling import mlp_decoder
from benchmarking.scaling import exponent
from benchmarking.summary import as_markdown, tables
from lvkam import features, load_config, metrics
from lvkam.build import build_model
from lvkam.generator import bernoulli_log_likelihood
from lvkam.inference import evaluate_checkpoint
from lvkam.objectives import ImportanceSampling
from lvkam.splines import adaptive_knots, b_spline_basis, extend_grid
from lvkam.univariate import FunctionFamily, UnivariateFunctions
from tests.conftest import REPOSITORY, few_of_mnist, small_config, stream


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
    report.write(*[lambda axes: bars(axes, ["x"], [1.0], "ms")] * 3)
    with Image.open(tmp_path / "new" / "name.png") as picture:
        assert picture.width == 3 * 480


# rivals


def by_quadrature(log_density: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """log of the integral over the plane of exp, (n, 2) -> (B, n) or (n,)."""
    nodes = torch.linspace(-9, 9, 601)
    z = torch.cartesian_prod(nodes, nodes)
    return log_density(z).double().logsumexp(-1) + 2 * np.log(18 / 600)


def log_normal(z: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(0, 1).log_prob(z).sum(-1)


def sharpened(model: VAE | LEBM) -> None:
    """Far from its initial values, where all images would be equally likely and f zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)


def test_a_vaes_evidence_is_the_integral() -> None:
    model, x = VAE(6, stream(0), latent_dim=2, hidden=8), torch.rand(5, 6, generator=stream(1))
    with torch.no_grad():
        model.decoder[-1].weight.mul_(6)  # pyright: ignore
        exact = by_quadrature(lambda z: bernoulli_log_likelihood(x, model.decoder(z)) + log_normal(z))
    found = model.log_evidence(x, 20_000, stream(2))
    assert exact.std() > 0.1
    assert found.standard_error.max() < 0.02
    assert ((found.log_evidence - exact).abs() < 4 * found.standard_error).all()
    assert abs(float((found.log_evidence - exact).mean())) < 4 * found.mean_standard_error
    with torch.no_grad():  # the bound that is trained is below it, in the mean over its samples
        bound = -torch.stack([model.loss(x, rng) for rng in map(stream, range(300))]).mean()
    assert float(bound) < float(exact.mean())


def test_an_energy_based_models_evidence_is_the_integral(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LEBM, "NORMALISER_SAMPLES", 200_000)
    model = LEBM(6, stream(0), latent_dim=2, hidden=8, hidden_energy=8)
    sharpened(model)
    x = torch.rand(5, 6, generator=stream(1))
    with torch.no_grad():
        log_z = by_quadrature(model.log_prior)
        exact = by_quadrature(lambda z: bernoulli_log_likelihood(x, model.decoder(z)) + model.log_prior(z)) - log_z
    normaliser = model.log_normaliser(stream(2))
    assert abs(float(log_z)) > 0.1
    assert abs(normaliser.value - float(log_z)) < 4 * normaliser.standard_error < 0.05
    found = model.log_evidence(x, 20_000, stream(3))
    assert exact.std() > 0.1
    assert found.standard_error.max() < 0.03
    assert found.effective_sample_size.min() > 4000
    assert ((found.log_evidence - exact).abs() < 4 * found.standard_error).all()


def test_standard_errors_are_of_the_estimate() -> None:
    """Of log-normal weights, by as many repetitions as there are images; an error of log Z is common to all."""
    w = 0.7 * torch.randn(2000, 400, generator=stream(0))
    found = average([w[:700], w[700:]])
    assert found.log_evidence.std() == pytest.approx(float(found.standard_error.mean()), rel=0.05)
    assert found.mean_standard_error == pytest.approx(float(found.standard_error.mean()) / 2000**0.5, rel=0.05)
    shifted = average([w], (0.5, 0.1, 1.0))  # pyright: ignore
    torch.testing.assert_close(shifted.log_evidence, found.log_evidence - 0.5)
    assert shifted.mean_standard_error == pytest.approx(0.1, rel=0.01)


def test_langevin_dynamics_settle_in_their_density() -> None:
    """N(1, 0.5^2): with a step s the variance is 1 / (1 - s^2 / (4 sigma^2)) times as large."""
    sigma, size = 0.5, 0.2
    start = torch.randn(20_000, 1, generator=stream(0))
    z = last(langevin(lambda z: -0.5 * ((z - 1) / sigma).square().sum(1), start, 100, size, stream(1)))
    assert float(z.mean()) == pytest.approx(1, abs=0.02)
    assert float(z.var()) == pytest.approx(sigma**2 / (1 - size**2 / (4 * sigma**2)), rel=0.05)
    assert not z.requires_grad


def test_proposals_have_the_density_they_say() -> None:
    points = torch.randn(1, 3000, 2, generator=stream(0)) @ torch.tensor([[1.0, 0.4], [0.0, 0.5]]) + 1
    z, log_q = StudentT.around(points).draw(100_000, stream(1))
    torch.testing.assert_close(z.mean((0, 1)), torch.ones(2), atol=0.05, rtol=0)
    # the mean of N(0, 1) / q over samples of q is 1
    assert float((log_normal(z) - log_q).exp().mean()) == pytest.approx(1, abs=0.05)
    nu = StudentT.FREEDOM
    variances = points.var(1)[0] * nu / (nu - 2)
    torch.testing.assert_close(z[0].var(0), variances, atol=0, rtol=0.05)


@pytest.mark.parametrize(("kind", "rate"), [(VAE, "rate"), (LEBM, "decoder_rate")])
def test_rivals_learn(kind: Callable[..., VAE | LEBM], rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LEBM, "WARMUP", 1)  # of steps of LEBM there are a few dozen here
    monkeypatch.setattr(LEBM, "PRIOR_STEPS", 5)
    monkeypatch.setattr(LEBM, "NORMALISER_SAMPLES", 10_000)
    images = (torch.rand(200, 1, generator=stream(0)) > 0.5).float().expand(-1, 64) * 0.9 + 0.05
    model = kind(64, stream(1), latent_dim=2, hidden=16, **{rate: 0.02})
    before = float(model.log_evidence(images[:20], 500, stream(2)).log_evidence.mean())
    weights = [p.clone() for p in model.parameters() if p.ndim > 1]  # what is added to f changes no density
    training = train(model, images, 1.0, stream(3))
    assert training.steps > 5
    assert training.seconds >= 1.0
    changed = [p for p in model.parameters() if p.ndim > 1]
    assert all((p != q).any() for p, q in zip(weights, changed, strict=True))
    assert float(model.log_evidence(images[:20], 500, stream(2)).log_evidence.mean()) > before + 0.5
    assert model.sample(30, stream(4)).shape == (30, 64)


# quality


def run_quality(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, arguments)])
    quality.main()


def test_a_quick_run_is_taken_up_again_and_summarised(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "STEPS", 30)
    monkeypatch.setattr(metrics, "REPLICATES", 20)
    monkeypatch.setattr(quality, "NUM_TRAIN", 500)
    monkeypatch.setattr(quality, "SIZE", 8)
    monkeypatch.setattr(quality, "QUICK", quality.Effort(10, 3, 50, 50, 200, 4, 2, 5, 30, 20, 3))
    monkeypatch.setattr(quality, "problem_of_compiling", lambda: "not in this test")
    monkeypatch.setattr(LEBM, "NORMALISER_SAMPLES", 10_000)
    (preset := tmp_path / "preset.ini").write_text(small_config().to_ini(), encoding="utf-8")
    data, output = few_of_mnist(tmp_path / "data", 800, 300), tmp_path / "new" / "out"
    options = ("--quick", "--output", output, "--data-dir", data, "--datasets", "MNIST", "--preset", f"MNIST={preset}")
    run_quality(monkeypatch, *options, "--seconds", "0.3")
    lines = (output / "cells.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["model"] for record in records] == ["controls", "LV-KAM", "LEBM", "VAE"]  # turned by the seed
    assert all(record["training seconds"] >= 0.3 for record in records[1:])
    assert records[1]["parameters"] == sum(p.numel() for p in build_model(small_config(), 64).parameters())
    assert records[3]["parameters"] > records[3]["decoder parameters"] > 500_000 / 2
    assert set(records[1]["images a second"]) == {"VAE", "LEBM", "LV-KAM"}
    with np.load(output / "quality-samples" / "VAE-MNIST-8-0.3s-1.npz") as arrays:
        assert arrays["samples"].shape == (30, 8, 8)

    # what is there is not measured again, what is missing is, and a cell measured otherwise is refused
    with monkeypatch.context() as patch:
        patch.setattr(quality, "measure_lvkam", None)
        patch.setattr(quality, "measure_controls", None)
        run_quality(monkeypatch, *options, "--seconds", "0.3")
        assert (output / "cells.jsonl").read_text().splitlines() == lines
        with pytest.raises(SystemExit) as stop:
            run_quality(monkeypatch, *options, "--seconds", "0.3", "--set", "TRAINING.batch_size=20")
        assert stop.value.code == 2
        assert "MNIST 8x8, LV-KAM, 0.3 s, seed 1 was measured with config = " in capsys.readouterr().err
        (output / "cells.jsonl").write_text("\n".join(lines[:3]) + "\n")
        run_quality(monkeypatch, *options, "--seconds", "0.3")
    again = (output / "cells.jsonl").read_text().splitlines()
    assert (again[:3], len(again), json.loads(again[3])["model"]) == (lines[:3], 4, "VAE")

    for name in ("quality.txt", "quality.csv", "quality.png", "quality-samples-MNIST-8.png"):
        (output / name).unlink()
    # wherever it is summed up, it tells where each cell was measured
    moved = [json.loads(line) | {"machine": "elsewhere" if i else "here"} for i, line in enumerate(again)]
    (output / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in moved))
    run_quality(monkeypatch, "--summarise", "--output", output)
    text = (output / "quality.txt").read_text()
    assert "\n\nelsewhere\n\nhere\n\n" in text
    assert records[0]["machine"] not in text
    assert "LV-KAM less VAE, paired by seed" in text
    found = tables(output / "quality.csv")
    assert [row["s"] for row in found["likelihood"]] == ["0.3"] * 3
    assert {row["verdict"] for row in found["targets"]} <= {"met", "missed"}
    assert len(found["targets"]) == 5
    for name in ("quality.png", "quality-samples-MNIST-8.png"):
        assert 1000 < (output / name).stat().st_size < 300_000


def record(model: str, seed: int, seconds: float = 45.0, **figures: Any) -> dict[str, Any]:
    usual = {"nll": 40.0, "kid": 0.05, "fid": 2.0, "precision": 0.9, "recall": 0.5, "coverage": 0.8, "parameters": 10}
    return {"model": model, "data": "MNIST", "size": 14, "seconds": seconds, "seed": seed, **usual, **figures}


def judged(*records: dict[str, Any]) -> dict[str, tuple[float, str]]:
    return {str(row["target"]): (float(row["measured"]), str(row["verdict"])) for row in targets(grouped(records))}


def test_targets_are_judged_by_the_median_of_seeds_that_both_models_have() -> None:
    def ours(seed: int, **figures: Any) -> dict[str, Any]:
        drawing = {"VAE": 90.0, "LV-KAM": 30.0, "LV-KAM, compiled": 100.0}
        return record("LV-KAM", seed) | {"images a second": drawing} | figures

    vae = [record("VAE", seed, nll=nll, coverage=0.7, parameters=12) for seed, nll in ((1, 41.0), (2, 40.3), (3, 40.1))]
    met = judged(*vae, ours(1), ours(2), ours(3), ours(4, nll=90.0))  # the last one has no partner
    assert met["NLL, less the VAE's"] == (pytest.approx(-0.3), "met")
    assert met["KID, less the VAE's"] == (0.0, "met")
    assert met["coverage, the VAE's less LV-KAM's"] == (pytest.approx(-0.1), "met")
    assert met["parameters, less the VAE's"] == (-2.0, "met")
    assert met["drawing, the VAE decoder's speed over LV-KAM's"] == (pytest.approx(0.9), "met")
    worse = {
        "nll": 40.2,
        "kid": 0.06,
        "coverage": 0.6,
        "parameters": 13,
        "images a second": {"VAE": 50.0, "LV-KAM": 40.0},
    }
    missed = judged(*vae, *(ours(seed, **worse) for seed in (1, 2, 3)))
    assert [verdict for _, verdict in missed.values()] == ["missed"] * 5
    assert missed["NLL, less the VAE's"][0] == pytest.approx(-0.1)  # after 45 seconds 0.2 are asked for
    assert missed["drawing, the VAE decoder's speed over LV-KAM's"][0] == pytest.approx(1.25)
    others = judged(*(r | {"seconds": 15.0} for r in (*vae, *(ours(seed, **worse) for seed in (1, 2, 3)))))
    assert others["NLL, less the VAE's"][1] == "met"


def test_a_model_far_above_the_others_is_told_in_the_legend() -> None:
    axes = Figure().subplots()
    records = [record("VAE", 1, nll=41.0), record("LV-KAM", 1), record("LEBM", 1, nll=136.0)]
    draw_nll(axes, grouped(records))
    assert axes.get_ylim()[1] < 42
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["VAE", "LV-KAM", "LEBM, above: 136.0"]


def test_medians_are_told_with_their_range() -> None:
    assert spread([1.234], 2) == "1.23"
    assert spread([3.0, 1.0, 2.5], 1) == "2.5 [1.0, 3.0]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", "15,x"), "argument --seconds: invalid seconds value: '15,x'"),
        (("--seconds", "0"), "must be greater than 0"),
        (("--seconds", "15,15"), "names one twice"),
        (("--seeds", "-1"), "must be from 0 to"),
        (("--datasets", "MNIST,SVHN"), "SVHN: must be out of MNIST, FMNIST"),
        (("--models", "VAE,GAN"), "GAN: must be out of VAE, LV-KAM, LEBM, VAE-bf16"),
        (("--preset", "MNIST"), "must be NAME=FILE.ini"),
        (("--preset", "MNIST=missing.ini"), "missing.ini"),
        (("--set", "TRAINING.nothing=1", "--preset", "MNIST=nist_config.ini"), "nothing"),
        (("--summarise",), "there are no cells to summarise"),
    ],
)
def test_bad_input_is_one_message(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quality, "problem_of_compiling", lambda: "not in this test")
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as stop:
        run_quality(monkeypatch, "--output", tmp_path / "out", *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_of_cells_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cells.jsonl").write_text('{"model": "VAE"}\n')
    with pytest.raises(SystemExit):
        run_quality(monkeypatch, "--summarise", "--output", tmp_path)
    assert "cells.jsonl: is not a file of cells" in capsys.readouterr().err


# ablations


def run_ablations(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ablations", "--quick", *map(str, arguments)])
    ablations.main()


def test_ablations_change_one_thing_and_are_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences are from the preset with the same seed; finished runs stay as they are."""
    (preset := tmp_path / "preset.ini").write_text(small_config().to_ini(), encoding="utf-8")
    data, output = few_of_mnist(tmp_path / "data", 300, 120), tmp_path / "out"
    name = "1 sample carries gradient"
    options = ("--output", output, "--data-dir", data, "--preset", preset, "--only", name, "--set", "TRAINING.seed=5")
    run_ablations(monkeypatch, *options)
    runs = {key: output / "ablations" / folder for key, folder in (
        ("the preset", "the_preset_1"), (name, "1_sample_carries_gradient_1"),
    )}  # fmt: skip
    configs = {key: load_config(run / "config.ini").to_ini().splitlines() for key, run in runs.items()}
    different = [line for line in configs[name] if line not in configs["the preset"]]
    assert different == ["gradient_samples = 1"]
    assert "seed = 1" in configs[name]
    nll = {
        key: evaluate_checkpoint(run / "ckpt.h5", 100, 1000, seed=1, data_dir=data)["nll_nats"]
        for key, run in runs.items()
    }
    (rows,) = tables(output / "ablations.csv").values()
    assert [row["changed"] for row in rows] == list(runs)
    for row in rows:
        assert float(row["test NLL (nats)"]) == round(nll[row["changed"]], 3)
        assert float(row["worse by"]) == round(nll[row["changed"]] - nll["the preset"], 3)
        assert int(row["steps"]) > 0

    before = {key: (run / "ckpt.h5").read_bytes() for key, run in runs.items()}
    run_ablations(monkeypatch, *options)
    assert {key: (run / "ckpt.h5").read_bytes() for key, run in runs.items()} == before
    assert list(tables(output / "ablations.csv").values()) == [rows]
    with pytest.raises(SystemExit) as stop:  # they are not taken for runs of another preset
        run_ablations(monkeypatch, *options, "--set", "TRAINING.batch_size=20")
    assert stop.value.code == 2


def test_every_ablation_of_the_preset_is_a_configuration_of_its_own() -> None:
    settings = {
        name: load_config(ablations.PRESET, list(changes)).to_ini() for name, changes in ablations.VARIANTS.items()
    }
    assert len(set(settings.values())) == len(settings)
