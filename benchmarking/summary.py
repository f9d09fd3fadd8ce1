"""`summary.md`: every benchmark's tables and picture on one page, under the machine that they were measured on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from benchmarking.harness import options

PEERS = ("inkan", "inkan, dense", "flashkan", "pykan")
ORDER = ("kan_layers", "prior", "train_step", "temperatures", "sampling", "latent_dim", "scaling")


def tables(path: Path) -> dict[str, list[dict[str, str]]]:
    """A CSV file's rows by the heading of their table, empty columns left out."""
    found: dict[str, list[dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("table"), []).append({k: v for k, v in row.items() if v})
    return found


def as_markdown(rows: list[dict[str, str]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(columns), "|".join(["---"] * len(columns))]
    lines += [" | ".join(_short(row.get(column, "")) for column in columns) for row in rows]
    return [f"| {line} |" if "---" not in line else f"|{line}|" for line in lines]


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}" if "." in text or "e" in text else text
    except ValueError:
        return text


def targets(folder: Path) -> list[dict[str, str]]:
    """What the project set itself, beside what these results say."""
    found: list[dict[str, str]] = []

    def judge(what: str, most: float, measured: float) -> None:
        verdict = "met" if measured <= most else "missed"
        found.append({"target": what, "at most": f"{most:.4g}", "measured": f"{measured:.4g}", "verdict": verdict})

    rows = {name: [row for part in tables(folder / f"{name}.csv").values() for row in part] for name in ORDER}
    _judge_layers(rows["kan_layers"], judge)
    steps = {row["step"]: row for row in rows["train_step"]}
    if "lvkam, S = 64" in steps:
        ours = steps["lvkam, S = 64"]
        judge("training step, times its floors", 2.5, float(ours["times floor"]))
        judge("training step, share of the port's time", 0.1, 1 / float(ours["times faster than port"]))
    more = next(row for row in rows["train_step"] if "S = 1024 over S = 64" in row)
    judge("training step, S = 1024 over S = 64", 8, float(more["S = 1024 over S = 64"]))
    for row in rows["temperatures"]:
        if (row["model"], row["step"]) == ("lvkam", "T = 100, no resampling"):
            most = float(row["times importance sampling"])
            judge("training step with 100 temperatures, times one of importance sampling", 1.2, most)
    for row in rows["sampling"]:
        if row["model"] == "lvkam":
            share = float(row["share of MLP's"])
            judge(f"drawing in batches of {row['batch']}, an MLP decoder's speed over lvkam's", 2, 1 / share)
    for row in rows["scaling"]:
        if "exponent of the time" in row and row["size"] in {"B", "S", "Q", "P"}:
            judge(f"exponent of a step's time in {row['size']}", 1.1, float(row["exponent of the time"]))
    return found


def _judge_layers(rows: list[dict[str, str]], judge: Callable[[str, float, float], None]) -> None:
    layers = {(row["N"], row["layers"]): row for row in rows if "ratio" in row}
    for num_points, most in (("512", 1.5), ("4096", 1.35)):
        if (num_points, "lvkam") in layers:
            ours = float(layers[num_points, "lvkam"]["ratio"])
            judge(f"layers at N = {num_points}, times the matrix products", most, ours)
            peers = [float(r["ratio"]) for (n, name), r in layers.items() if n == num_points and name in PEERS]
            if peers:
                judge(f"layers at N = {num_points}, beside the best other library", 1.0, ours / min(peers))
            for slow in ("Cox-de Boor, contracted", "Cox-de Boor, each function"):
                if (num_points, slow) in layers:
                    share = ours / float(layers[num_points, slow]["ratio"])
                    judge(f"layers at N = {num_points}, share of the time of {slow}", 0.25, share)
    peak = [row for row in rows if "peak MiB" in row and row["layers"] == "lvkam"]
    if peak:
        judge("layers at N = 4096, peak MiB", 150, float(peak[0]["peak MiB"]))
    judge("largest error of the B-splines", 3e-6, max(float(r["error"]) for r in rows if "error" in r))


def main() -> None:
    report = options("summary", "all results on one page")
    texts = {name: (report.folder / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in ORDER}
    lines = ["# Benchmarks", "", f"Summed up from {', '.join(f'`{name}.csv`' for name in ORDER)}.", ""]
    lines += ["A quick run: few rounds, few sizes.", ""] if report.quick else []
    lines += ["**Targets**", "", *as_markdown(targets(report.folder)), ""]
    for name in ORDER:
        title, machine = texts[name][0], texts[name][2]
        lines += [f"## {title}", "", machine, ""]
        for heading, rows in tables(report.folder / f"{name}.csv").items():
            lines += [f"**{heading}**", "", *as_markdown(rows), ""]
        lines += [f"![{title}]({name}.png)", ""]
    (report.folder / "summary.md").write_text("\n".join(lines), encoding="utf-8")
    print(report.folder / "summary.md")


if __name__ == "__main__":
    main()
