"""Cost of training and drawing for n_z = 10, 50 and 100 latent coordinates, as in the reference's benchmark."""

from __future__ import annotations

from matplotlib.axes import Axes

from benchmarking.harness import NIST, VANILLA, Row, interleave, options, variants
from benchmarking.train_step import training_step
from lvkam import build_model, load_config
from lvkam.data import load_dataset
from lvkam.training import random_stream

SIZES = (10, 50, 100)


def main() -> None:
    report = options("latent_dim", "A training step and 64 drawn images for n_z latent coordinates, 2 n_z hidden")
    images = load_dataset("MNIST", 8192, 64, (14, 14)).train
    rows: list[Row] = []
    for name, compiled in variants().items():
        calls = {}
        for size in SIZES:
            widths = [f"MIX_PRIOR.layer_widths=50, {size}", f"KAN_LIKELIHOOD.expert_widths={size}, {2 * size}"]
            config = load_config(NIST, [VANILLA, *widths])
            model = build_model(config, images.shape[1], compile=compiled)
            model.update_grids(64, random_stream(1, "training"), prior=True, generator=True)
            rng = random_stream(1, "generation")
            calls[f"{size} training step"] = training_step(model, config, list(images.split(64)))
            calls[f"{size} drawing"] = lambda model=model, rng=rng: model.sample(64, rng)
        for what, timing in interleave(calls, 10 if report.quick else 40, warmup=20).items():
            size, what_for = what.split(" ", 1)
            rows.append({"n_z": int(size), "what": what_for, "model": name, **timing.milliseconds()})
    report.add("milliseconds", rows)

    def draw(axes: Axes) -> None:
        for name in variants():
            for what, style in (("training step", "o-"), ("drawing", "s--")):
                values = [float(row["ms"]) for row in rows if (row["model"], row["what"]) == (name, what)]
                axes.plot(SIZES, values, style, label=f"{name}: {what}")
        axes.set(xlabel="n_z", ylabel="ms", ylim=(0, None))
        axes.legend(fontsize=8)

    report.write(draw)


if __name__ == "__main__":
    main()
