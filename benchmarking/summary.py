"""`summary.md`: every benchmark's tables and picture on one page, under the machine that they were measured on."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarking.harness import machine, options

ORDER = ("kan_layers", "prior", "train_step", "sampling", "latent_dim", "scaling")


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


def main() -> None:
    report = options("summary", "all results on one page")
    lines = ["# Benchmarks", "", machine() + ("; a quick run" if report.quick else ""), ""]
    for name in ORDER:
        path = report.folder / f"{name}.csv"
        if not path.exists():
            continue
        title = (report.folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()[0]
        lines += [f"## {title}", ""]
        for heading, rows in tables(path).items():
            lines += [f"**{heading}**", "", *as_markdown(rows), ""]
        lines += [f"![{title}]({name}.png)", ""]
    (report.folder / "summary.md").write_text("\n".join(lines), encoding="utf-8")
    print(report.folder / "summary.md")


if __name__ == "__main__":
    main()
