"""Reports: what the file holds, and what a browser makes of it, against the model itself."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvkam import exhibits, features, quality, subject, summary
from lvkam import metrics as bootstrap
from lvkam import report as report_module
from lvkam.build import build_model, load_model, model_arrays, save_model
from lvkam.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lvkam.errors import DataError
from lvkam.experiment import draw_samples, run_experiment
from lvkam.inference import ESTIMATORS, caution, evaluate_checkpoint
from lvkam.inspection import prior_densities
from lvkam.plots import image_grid
from lvkam.report import write_comparison, write_report
from lvkam.run_folder import OutputError
from lvkam.standardisation import Standardisation
from lvkam.summary import metric_groups
from tests.conftest import few_of_mnist, numbers_in, small_config, table_overrides, write_table

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip
HOSTILE = "</script><script>alert(1)</script>\"'&<b>"
MOST_BYTES = 5_000_000


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Small numbers throughout: of test images, samples and data, in a folder that is looked into first."""
    folder = few_of_mnist(tmp_path_factory.mktemp("data"), 600, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ESTIMATORS, "importance", (100, 2000))
        patch.setattr(subject, "POSTERIOR_SAMPLES", 2000)
        patch.setenv("LVKAM_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "run"
    return run_experiment(small_config("TRAINING.N_epochs=3"), folder, say=quiet)


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    return write_report(run, run.parent / "report.html", metrics="nll", say=quiet)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model of a table with a hostile name and columns of hostile names."""
    folder = tmp_path_factory.mktemp("of-somebody")
    data = folder / "data.csv"
    rows = write_table(data)
    config = small_config(*table_overrides(data), "MIX_PRIOR.π_0=gaussian")
    columns = ("length", HOSTILE, "$speed$")
    model = build_model(config, 3)
    model.update_grids(64, torch.Generator().manual_seed(0), prior=True, generator=True)
    checkpoint = Checkpoint(
        config=config.to_ini(), dataset=str(folder / "<script>alert(2)<" / "script>.csv"), image_shape=(3,), seed=1,
        epoch=0, iteration=0, lvkam_version="0", arrays=model_arrays(model),
        standardisation=Standardisation(columns, rows.mean(0), rows.std(0)),
    )  # fmt: skip
    write_checkpoint(folder / "table.h5", checkpoint)
    return folder / "table.h5"


# the file


def check_self_contained(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?!data:|#)[^"'> ]*//""", text)
    assert not re.search(r"url\(|@import|https?://", text)
    assert set(re.findall(r'(?:src|href)="([^"]{5})', text)) <= {"data:"} | {
        m[:5] for m in re.findall(r'href="(#\w+)', text)
    }
    assert "default-src 'none'" in text
    return text


def test_metrics_stand_beside_their_controls(
    run: Path, few: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "STEPS", 5)
    monkeypatch.setattr(quality, "NUM_COMPARED", 60)
    monkeypatch.setattr(bootstrap, "REPLICATES", 20)
    text = write_report(run, tmp_path / "page.html", data_dir=few, say=quiet).read_text(encoding="utf-8")
    found = evaluate_checkpoint(run / "ckpt.h5", metrics=["kid"], data_dir=few)
    assert f"FID({found['features']})" in text
    for name in ("real train", "without class 0", "noise"):
        assert len(re.findall(f">\\s*{name}\\s*<", text)) == 12  # six metrics on two kinds of features
    row = found["metrics"][0]
    assert (row["set"], row["metric"]) == ("model", "kid")
    assert f"{row['corrected']:.3g}" in text
    assert "plug-in values" in text
    cells = re.findall(r'<td class="number">([^<]+)</td><td class="number">([^<]+) to ([^<]+)</td>', text)
    assert len(cells) == 48
    for cell in cells:
        shown, low, high = (float(number.replace("−", "-")) for number in cell)
        assert low <= shown <= high


@pytest.mark.parametrize("damaged", [True, False])
def test_without_the_classifier_the_likelihood_is_still_told(
    damaged: bool, run: Path, few: Path, cache: Path, tmp_path: Path
) -> None:
    file = features.features_file("MNIST", (7, 7))
    if damaged:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"nothing")
    else:
        cache.parent.write_bytes(b"no folder")
    said: list[str] = []
    text = write_report(run, tmp_path / "page.html", data_dir=few, say=said.append).read_text(encoding="utf-8")
    assert "Test NLL" in text
    assert "--metrics nll does without it, and XDG_CACHE_HOME" in text
    assert str(tmp_path) not in text
    assert any(line.startswith("warning: no metrics but the likelihood: ") and file.name in line for line in said)


def test_a_report_is_one_file_that_needs_nothing_else(run: Path, report: Path) -> None:
    text = check_self_contained(report)
    for section in ("samples", "loss", "try", "priors", "traversal", "functions", "metrics", "configuration"):
        assert f'<section id="{section}"' in text
        assert f'href="#{section}"' in text
    assert "Test NLL" in text
    assert "N_train = 200" in text
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(images) == 2 + 2 + 4  # samples, test images; both and their reconstructions; four coordinates
    for image in images:
        Image.open(io.BytesIO(base64.b64decode(image))).verify()
    assert text.count('<figure class="chart small"') == 4


def test_the_samples_are_those_of_the_run(run: Path, report: Path) -> None:
    first = re.findall(r'src="data:image/png;base64,([^"]+)"', report.read_text(encoding="utf-8"))[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    model, config = load_model(run / "ckpt.h5"), small_config()
    samples, _ = draw_samples(model, config, exhibits.NUM_SAMPLES, 1)
    np.testing.assert_array_equal(shown, np.asarray(image_grid(samples.numpy().reshape(-1, 7, 7))))


def test_a_model_alone_has_no_course_of_training(tmp_path: Path) -> None:
    config = small_config()
    save_model(tmp_path / "own.h5", build_model(config, 49), config, (7, 7))
    page = write_report(tmp_path / "own.h5", tmp_path / "page.html", metrics="none", say=quiet)
    text = check_self_contained(page)
    assert "without the course of its training" in text
    assert "Test NLL" not in text
    assert "--metrics none" in text


def test_what_nothing_varies_has_shares_of_zero(tmp_path: Path) -> None:
    config = small_config()
    model = build_model(config, 49)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.zero_()
    save_model(tmp_path / "own.h5", model, config, (7, 7))
    text = write_report(tmp_path / "own.h5", tmp_path / "page.html", metrics="none", say=quiet).read_text("utf-8")
    assert "nan %" not in text
    assert "0.0 %" in text


def test_texts_from_files_are_no_markup(table: Path, tmp_path: Path) -> None:
    said: list[str] = []
    page = write_report(table, tmp_path / "page.html", say=said.append)
    text = check_self_contained(page)
    assert "alert(1)</script>" not in text
    assert "<b>" not in text
    assert "<script>alert" not in text
    assert text.count("<script") == 4
    assert "name the data with --data" in text
    assert any(line.startswith("warning") and str(table) in line for line in said)
    assert "dataset = " in text
    assert "of-somebody" not in text  # the folder of both the checkpoint and its data


def test_own_data_that_are_named_must_be_there(table: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv"):
        write_report(table, tmp_path / "page.html", data=str(tmp_path / "absent.csv"), say=quiet)
    assert not (tmp_path / "page.html").exists()


def test_runs_are_compared(run: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured("model", "A", "kid", 0.25)
    figures = {"nll_nats": 12.5, "nll_stderr": 0.25, "bits_per_dim": 0.5, "metrics": [row]}
    monkeypatch.setattr(report_module, "evaluate_checkpoint", lambda *_, **__: figures)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    saved = read_checkpoint(run / "ckpt.h5")
    changed = saved.config.replace("learning_rate = 0.005", "learning_rate = 0.125")
    assert changed != saved.config
    write_checkpoint(other / "ckpt.h5", Checkpoint(**{**vars(saved), "config": changed}))
    page = write_comparison([run, other], tmp_path / "cmp.html", say=quiet)
    text = check_self_contained(page)
    rows = dict(re.findall(r'<th scope="row">([^<]+)</th>(.*?)</tr>', text))
    assert {name for name in rows if "." in name} == {"OPTIMIZER.learning_rate"}
    assert re.findall("<td>([^<]+)", rows["OPTIMIZER.learning_rate"]) == ["0.005", "0.125"]
    assert re.findall("<td>([^<]+)", rows["test NLL (nats)"]) == ["12.500 ± 0.250"] * 2
    assert re.findall("<td>([^<]+)", rows["KID(A)"]) == ["0.25"] * 2
    for path in (run, other):  # both folders are called run
        assert f"{path.parent.name}/run" in text
    assert str(tmp_path.parent) not in text
    together = write_comparison([run, table], tmp_path / "both.html", metrics="none", say=quiet)
    assert "<script>alert" not in check_self_contained(together)


def measured(name: str, features: str, metric: str, value: float, spread: float | None = None) -> dict[str, Any]:
    ends = (None, None) if spread is None else (value - spread, value + spread)
    return dict(
        zip(
            ("set", "features", "metric", "value", "corrected", "low", "high"),
            (name, features, metric, value, None, *ends),
            strict=True,
        )
    )


def test_numbers_are_written_as_one_reads_them(run: Path, report: Path) -> None:
    assert [summary._number(value, 2) for value in (-0.001, -1.5, None)] == ["0.00", "−1.50", "–"]
    assert summary._number(-0.0) == "0"
    assert [summary._duration(seconds) for seconds in (0.0361, 61.04, 3600)] == ["0.04 s", "61 s", "60 min"]
    assert [summary._count(number, "epoch") for number in (1, 2000)] == ["1 epoch", "2,000 epochs"]
    assert "CPU, 1 thread," in report.read_text(encoding="utf-8")


def test_measures_are_grouped_with_their_controls() -> None:
    sets = (("model", 5.0, 1.0), ("real train", 0.0, None), ("noise", 1e6, 1.0))
    rows = [
        measured(name, features, metric, value, spread)
        for name, value, spread in sets
        for features in ("A", "B")
        for metric in ("kid", "coverage")
    ]
    groups = metric_groups(rows)
    assert [group["features"] for group in groups] == ["A", "B"]
    assert [measure["title"] for measure in groups[1]["measures"]] == ["KID(B)", "Coverage(B)"]
    model, control, noise = groups[0]["measures"][0]["rows"]
    assert [row["kind"] for row in (model, control, noise)] == ["model", "", "noise"]
    assert (model["interval"], control["interval"]) == ("4.00 to 6.00", "–")
    assert control["places"][1] < model["places"][0] < model["places"][1] < model["places"][2]
    rows[0]["corrected"] = 4.5
    moved = metric_groups(rows)[0]["measures"][0]["rows"][0]
    assert (moved["value"], moved["places"][0]) == ("4.50", model["places"][0])
    assert moved["places"][1] < model["places"][1]


def test_a_likelihood_that_is_not_to_be_trusted_is_told() -> None:
    figures = {"images_not_to_trust": 10, "num_images": 1000, "what": "image", "estimator": "importance"}
    assert caution(figures) is caution(None) is None
    said = caution({**figures, "images_not_to_trust": 11})
    assert said is not None
    assert said.startswith("11 of 1000 images")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "{run}", "{run}"], "several paths need --compare"),
        (["report", "absent"], "absent"),
        (["report"], "Missing argument"),
    ],
)
def test_bad_input_is_told(words: list[str], message: str, run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lvkam_cli", *(word.format(run=run) for word in words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_nothing_unasked_and_never_the_checkpoint(run: Path, report: Path, tmp_path: Path) -> None:
    before = report.read_bytes()
    for write in (write_report, lambda path, output: write_comparison([path], output)):
        with pytest.raises(OutputError, match="exists already"):
            write(run, report)
    with pytest.raises(OutputError, match="checkpoint itself"):
        write_report(run, run / "ckpt.h5", overwrite=True, say=quiet)
    assert report.read_bytes() == before


# the browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed: reports are not opened in a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


class Opened:
    """A report in the browser, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, **options: Any):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto(path.as_uri())

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.said.append(f"asks for {request.url}")

    def close(self) -> None:
        self.page.close()
        assert self.said == []

    def state(self) -> dict[str, Any]:
        return self.page.evaluate("({...lvkam, z: Array.from(lvkam.z), data: Array.from(lvkam.data)})")

    def pixels(self) -> np.ndarray:
        address = self.page.evaluate("document.getElementById('image').toDataURL()")
        png = io.BytesIO(base64.b64decode(address.partition(",")[2]))
        return np.asarray(Image.open(png).convert("RGB"))

    def drag(self, share: float) -> float:
        """Drag the slider to a share of its width: the value there."""
        return self.page.locator("#slider").evaluate(
            """(slider, share) => {
                const wanted = Number(slider.min) + share * (slider.max - slider.min);
                slider.value = wanted;
                slider.dispatchEvent(new Event("input"));
                return wanted;
            }""",
            share,
        )


def check_state(opened: Opened, checkpoint: Path) -> dict[str, Any]:
    """What the page computes is what the model generates from the latents that it tells."""
    state = opened.state()
    ours = load_model(checkpoint).decode(torch.tensor([state["z"]]))[0].numpy()
    assert np.abs(state["data"] - ours).max() < 1e-3
    return state


def test_the_page_generates_what_the_model_does(run: Path, report: Path, chromium: Any) -> None:
    opened = Opened(chromium, report)
    page = opened.page
    states = [check_state(opened, run / "ckpt.h5")]
    model = load_model(run / "ckpt.h5")
    _, latents = draw_samples(model, small_config(), 1, 1)
    np.testing.assert_allclose(states[0]["z"], latents[0].numpy(), atol=1e-6)  # it begins with the first sample
    for share in (0.05, 0.95):
        wanted = opened.drag(share)
        states.append(check_state(opened, run / "ckpt.h5"))
        np.testing.assert_allclose(opened.pixels()[..., 0].ravel(), 255 * np.array(states[-1]["data"]), atol=0.51)
        q = states[-1]["coordinate"]
        density = prior_densities(model.prior)
        assert states[-1]["z"][q] == pytest.approx(wanted, abs=1e-3)
        assert states[-1]["u"] == pytest.approx(np.interp(wanted, density.z[q], density.cdf[q]), abs=2e-3)
        marker = float(re.findall("M([^,]+)", page.locator("#density .cursor").get_attribute("d"))[0])
        assert marker == pytest.approx(400 * share, abs=0.5)  # of a width of 400: above the thumb
    ends = [float(end.replace("−", "-")) for end in page.locator(".ends span").all_inner_texts()]
    np.testing.assert_allclose(ends, [np.interp(u, density.cdf[q], density.z[q]) for u in (0.01, 0.99)], atol=2e-3)
    page.locator("#next").click()
    page.locator("#slider").press("ArrowRight")
    states.append(check_state(opened, run / "ckpt.h5"))
    assert states[-1]["coordinate"] != states[0]["coordinate"]
    page.locator("#draw").press("Enter")
    states.append(check_state(opened, run / "ckpt.h5"))
    assert sum(a != b for a, b in zip(states[-1]["z"], states[-2]["z"], strict=True)) == 4
    moved = [np.abs(np.subtract(a["data"], b["data"])).max() for a, b in zip(states[1:], states, strict=False)]
    assert min(moved) > 0
    page.locator("#restart").click()
    assert opened.state()["z"] == states[0]["z"]
    assert "z" in page.locator("#reading").inner_text()
    opened.close()


def test_weights_of_16_bits_generate_what_the_model_does(
    tmp_path: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("KAN_LIKELIHOOD.expert_widths=4, 32, 48", "TRAINING.img_resize=14, 14")
    model = build_model(config, 196)
    model.update_grids(64, torch.Generator().manual_seed(0), prior=True, generator=True)
    save_model(tmp_path / "own.h5", model, config, (14, 14))
    weights = numbers_in(model)
    monkeypatch.setattr(exhibits, "MOST_CHARACTERS", (16 * sum(weights) + 16 * weights[0]) // 6 + 1)
    opened = Opened(chromium, write_report(tmp_path / "own.h5", tmp_path / "page.html", metrics="none", say=quiet))
    types = "JSON.parse(document.getElementById('data').textContent).generator.layers.map((layer) => layer.weight.type)"
    assert opened.page.evaluate(types) == ["float32", "int16", "int16"]
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        opened.drag(share)
        check_state(opened, tmp_path / "own.h5")
    for button in ("#draw", "#next") * 2:
        opened.page.locator(button).click()
        opened.drag(0.8)
        check_state(opened, tmp_path / "own.h5")
    opened.close()


def test_without_room_for_the_generator_the_slider_picks_frames(
    run: Path, tmp_path: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhibits, "generator_payload", lambda *_: None)
    opened = Opened(chromium, write_report(run, tmp_path / "page.html", metrics="none", say=quiet))
    first = check_state(opened, run / "ckpt.h5")
    opened.drag(0.9)
    second = check_state(opened, run / "ckpt.h5")
    assert first["z"] != second["z"]
    opened.page.locator("#slider").press("ArrowLeft")
    assert opened.state()["u"] == pytest.approx(second["u"] - 0.98 / (exhibits.FRAMES - 1))
    opened.page.locator("#next").click()
    third = check_state(opened, run / "ckpt.h5")
    assert third["coordinate"] != first["coordinate"]
    assert not opened.page.locator("#draw").is_visible()
    opened.close()


def test_the_slider_of_a_table_shows_its_columns(table: Path, tmp_path: Path, chromium: Any) -> None:
    page = write_report(table, tmp_path / "page.html", metrics="none", say=quiet)
    opened = Opened(chromium, page)
    opened.drag(0.3)
    state = check_state(opened, table)
    standardisation = read_checkpoint(table).standardisation
    assert standardisation is not None
    values = standardisation.restore(np.array([state["data"]]))[0]
    rows = opened.page.locator("#columns tr").all_inner_texts()
    assert rows[1].startswith(HOSTILE)
    shown = [float(row.split("\t")[1].replace("−", "-")) for row in rows]
    np.testing.assert_allclose(shown, values, rtol=1e-3)
    opened.close()


def test_curves_tell_their_values(run: Path, report: Path, chromium: Any) -> None:
    opened = Opened(chromium, report)
    log = read_checkpoint(run / "ckpt.h5").progress.log
    plot = opened.page.locator("#loss svg.plot").first
    plot.press("ArrowRight")
    for record in log[1:]:
        head, train, test = opened.page.locator("#tip").inner_text().replace("−", "-").splitlines()
        assert head.split() == ["epoch", str(record.epoch)]
        assert float(train.split()[-1]) == pytest.approx(record.train_loss, abs=0.02)
        assert float(test.split()[-1]) == pytest.approx(record.test_loss, abs=0.02)
        plot.press("ArrowRight")
    plot.press("Escape")
    assert opened.page.locator("#tip").is_hidden()
    small = opened.page.locator("#priors svg.plot")
    small.first.hover()
    assert "π₀" in opened.page.locator("#tip").inner_text()
    stops = "(charts) => charts.map((chart) => chart.tabIndex)"
    assert small.evaluate_all(stops) == [0, -1, -1, -1]  # all of them are one stop of the Tab key
    small.first.press("ArrowDown")
    assert small.evaluate_all(stops) == [-1, 0, -1, -1]
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-label')") == small.nth(1).get_attribute(
        "aria-label"
    )
    heights = "(texts) => texts.map((text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"
    assert min(opened.page.locator(".small .plot text").evaluate_all(heights)) > 11
    opened.close()


def test_a_finger_shows_values_and_another_chart_takes_them_over(report: Path, chromium: Any) -> None:
    opened = Opened(chromium, report, 390, has_touch=True)
    for n in (0, 1):
        opened.page.locator("#priors svg.plot").nth(n).tap()
        assert "π₀" in opened.page.locator("#tip").inner_text()
        assert opened.page.locator("#priors .plot .cursor").count() == 1
    opened.page.locator("#priors h2").tap()
    assert opened.page.locator("#tip").is_hidden()
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_and_is_drawn_in_light_and_dark(report: Path, chromium: Any, width: int, scheme: str) -> None:
    opened = Opened(chromium, report, width, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot = np.asarray(Image.open(io.BytesIO(opened.page.screenshot(full_page=True))).convert("L")).astype(float)
    assert shot.shape[1] == width
    assert np.median(shot) > 200 if scheme == "light" else np.median(shot) < 60
    for band in np.array_split(shot, 12):  # something is drawn all the way down
        assert band.std() > 3
    images = "Array.from(document.images, (i) => i.complete && i.naturalWidth > 0 && i.offsetWidth <= innerWidth)"
    assert all(opened.page.evaluate(images))
    opened.close()


def test_pictures_are_there_without_scripts(report: Path, chromium: Any) -> None:
    opened = Opened(chromium, report, java_script_enabled=False)
    assert not opened.page.locator(".try").is_visible()
    assert opened.page.locator(".unscripted").is_visible()
    assert opened.page.locator("#samples img").first.bounding_box()["height"] > 100
    assert opened.page.locator("#loss path.curve").count() >= 4
    opened.close()


def test_a_comparison_opens_too(run: Path, table: Path, tmp_path: Path, chromium: Any) -> None:
    opened = Opened(chromium, write_comparison([run, table], tmp_path / "cmp.html", metrics="none", say=quiet), 390)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.close()
