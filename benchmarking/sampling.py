"""Images drawn a second, beside an MLP decoder with as many parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from torch import nn

from benchmarking.harness import NIST, Row, interleave, options, variants
from lvkam import LVKAM, build_model, load_config
from lvkam.training import random_stream

BATCHES = (64, 512, 4096)
IMAGES = 4096


def mlp_decoder(latent_dim: int, data_dim: int, num_parameters: int) -> nn.Module:
    """latent -> H -> H -> data, SiLU between, with H for the given number of parameters."""
    b = latent_dim + data_dim + 2
    hidden = round((-b + (b * b + 4 * (num_parameters - data_dim)) ** 0.5) / 2)
    return nn.Sequential(
        nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, data_dim)
    )  # fmt: skip


def drawing(model: LVKAM, batch: int) -> Callable[[], None]:
    rng = random_stream(1, "generation")

    def draw() -> None:
        table = model.prior.table()  # once for all batches, as `lvkam sample` does
        for _ in range(IMAGES // batch):
            model.decode(model.prior.sample(batch, rng, table))

    return draw


def decoding(decoder: nn.Module, latent_dim: int, batch: int) -> Callable[[], None]:
    rng = random_stream(1, "generation")

    @torch.no_grad()
    def draw() -> None:
        for _ in range(IMAGES // batch):
            torch.sigmoid(decoder(torch.randn(batch, latent_dim, generator=rng)))

    return draw


def main() -> None:
    report = options("sampling", f"Images drawn a second, 14x14, {IMAGES} at a time in batches")
    config = load_config(NIST)
    models = {name: build_model(config, 196, compile=compiled) for name, compiled in variants().items()}
    generator = next(iter(models.values())).generator
    num_parameters = sum(p.numel() for p in generator.parameters())
    decoder = mlp_decoder(config.prior.latent_dim, 196, num_parameters)
    rows: list[Row] = []
    for batch in BATCHES:
        calls = {name: drawing(model, batch) for name, model in models.items()}
        calls["MLP decoder"] = decoding(decoder, config.prior.latent_dim, batch)
        timings = interleave(calls, 3 if report.quick else 21, warmup=1 if report.quick else 2)
        for name, timing in timings.items():
            rows.append({
                "batch": batch, "model": name, "images/s": round(IMAGES / timing.median),
                "share of MLP's": timings["MLP decoder"].ratio(timing),
            })  # fmt: skip
    mlp_parameters = sum(p.numel() for p in decoder.parameters())
    report.add(f"generator of {num_parameters} parameters, MLP decoder of {mlp_parameters}", rows)

    def draw(axes: Axes) -> None:
        for name in [*models, "MLP decoder"]:
            speeds = [float(row["images/s"]) for row in rows if row["model"] == name]
            axes.plot(BATCHES, speeds, "o-", label=name)
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="images a second", xticks=BATCHES)
        axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        axes.minorticks_off()
        axes.set_yticks([5000, 10000, 20000, 50000, 100000], ["5,000", "10,000", "20,000", "50,000", "100,000"])
        axes.legend(fontsize=8)

    report.write(draw)


if __name__ == "__main__":
    main()
