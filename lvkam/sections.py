"""The sections of a configuration: their keys, with type, range, default and meaning.

Keys are spelled as in the reference's files, Greek letters included; fields have plain names. What a key allows
travels with its field, so that messages and the table of keys are made from the same words.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

LARGEST_COUNT = 10**9


def _key(default: Any, meaning: str, key: str | None = None, allowed: str = "any text", **bounds: Any) -> Any:
    """A key of a section: what it allows, for messages and the table, travels with the field."""
    return Field(default=default, alias=key, description=meaning, json_schema_extra={"allowed": allowed}, **bounds)


def _count(default: int, low: int, high: int, meaning: str, key: str | None = None) -> Any:
    return _key(default, meaning, key, f"an integer from {low} to {high}", ge=low, le=high)


def _real(default: float, range_: str, meaning: str, key: str | None = None) -> Any:
    return _key(default, meaning, key, f"a number{range_}", allow_inf_nan=False, **_BOUNDS[range_])


POSITIVE = " greater than 0"
# what multiplies or divides stays where float32 holds it and its square
FACTOR, SIZE, WIDTH = " from -1000000 to 1000000", " from 0 to 1000000", " from 0.0001 to 1000000"
SHARE, OPEN_SHARE = " from 0 to 1", " between 0 and 1"
_BOUNDS: dict[str, dict[str, float]] = {
    POSITIVE: {"gt": 0},
    FACTOR: {"ge": -1e6, "le": 1e6},
    SIZE: {"ge": 0, "le": 1e6},
    WIDTH: {"ge": 1e-4, "le": 1e6},
    SHARE: {"ge": 0, "le": 1},
    OPEN_SHARE: {"gt": 0, "lt": 1},
}
Activation = Literal["relu", "leakyrelu", "tanh", "sigmoid", "swish", "gelu", "selu", "silu", "elu", "celu", "none"]
Width = Annotated[int, Field(ge=1, le=10**6)]
Side = Annotated[int, Field(ge=1, le=4096)]
Place = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
WORDS_FOR_NONE = {
    "img_resize": "native", "max_seconds": "none", "hidden_grid_range": "none", "initial_sample_size": "none",
}  # fmt: skip


class Section(BaseModel):
    """A section, frozen once validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """INI text to what pydantic takes: words for None, true and false alone, comma lists."""
        if not isinstance(value, str) or info.field_name is None:
            return value
        field = cls.model_fields[info.field_name]
        if value == WORDS_FOR_NONE.get(info.field_name):
            return None
        if field.annotation is bool:
            return {"true": True, "false": False}[value.lower()]
        if "tuple" in str(field.annotation):
            return [part.strip() for part in value.split(",")]
        return value

    def values_by_key(self) -> dict[str, Any]:
        """INI key -> value, with the INI file's word where a value is None."""
        dumped = {key: getattr(self, name) for key, (name, _) in self.fields_by_key().items()}
        return {key: WORDS_FOR_NONE[key] if value is None else value for key, value in dumped.items()}

    @classmethod
    def fields_by_key(cls) -> dict[str, tuple[str, FieldInfo]]:
        """INI key -> field name and field."""
        return {field.alias or name: (name, field) for name, field in cls.model_fields.items()}


def write_value(value: object) -> str:
    """A value as INI text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(write_value(part) for part in value)
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def allowed_text(field: FieldInfo) -> str:
    """What a key may hold, in words."""
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["allowed"])


class UnivariateConfig(Section):
    """The twelve keys that describe univariate functions."""

    spline_degree: int = _count(3, 1, 5, "degree k of the B-splines")
    base_activation: Activation = _key("silu", "the function b beside the spline")
    spline_function: Literal["B-spline", "RBF", "RSWAF"] = _key("B-spline", "the basis")
    grid_size: int = _count(12, 1, 10000, "grid intervals G")
    grid_update_ratio: float = _real(0.05, SHARE, "share of equally spaced knots in an updated grid")
    grid_range: tuple[Place, Place] = _key(
        (0.0, 1.0), "ends of the first grid", allowed="two numbers from -1000000 to 1000000, the smaller one first"
    )
    epsilon_scale: float = _real(0.1, SIZE, "size of the noise that the splines begin with", "ε_scale")
    mu_scale: float = _real(1.0, FACTOR, "mean scale of the base weights", "μ_scale")
    sigma_base: float = _real(1.0, FACTOR, "spread of the scale of the base weights", "σ_base")
    sigma_spline: float = _real(1.0, FACTOR, "scale of the spline weights", "σ_spline")
    initial_bandwidth: float = _real(1.0, WIDTH, "first bandwidth of RBF and RSWAF, in mean spacings", "init_η")
    bandwidth_trainable: bool = _key(True, "whether the bandwidth is learnt; never for B-spline", "η_trainable")


class PriorConfig(UnivariateConfig):
    """[MIX_PRIOR]: the mixture of univariate energy-based densities."""

    layer_widths: tuple[Width, ...] = _key(
        (50, 101),
        "components P, hidden widths, latent coordinates Q: from the last to the first",
        allowed="2 or more integers from 1 to 1000000, separated by commas",
        min_length=2,
        max_length=64,
    )
    reference_density: Literal["uniform", "gaussian"] = _key("uniform", "the reference density", "π_0")
    normalization: Literal["quadrature", "contrastive"] = _key(
        "quadrature", "how the log-prior is normalised in training; contrastive is the reference's biased form"
    )
    quadrature_points: int = _count(256, 32, 100000, "about how many nodes a density is tabulated at")

    @property
    def num_components(self) -> int:
        """P: the reference writes the widths reversed."""
        return self.layer_widths[0]

    @property
    def latent_dim(self) -> int:
        """Q."""
        return self.layer_widths[-1]


class GeneratorConfig(UnivariateConfig):
    """[KAN_LIKELIHOOD]: the generator and the likelihood."""

    widths: tuple[Width, ...] = _key(
        (101, 202),
        "latent coordinates Q, then hidden widths",
        "expert_widths",
        allowed="1 or more integers from 1 to 1000000, separated by commas",
        min_length=1,
        max_length=64,
    )
    hidden_grid_range: tuple[Place, Place] | None = _key(
        None,
        "ends of the first grids of the layers after the first one; none: those of grid_range",
        allowed="two numbers from -1000000 to 1000000, the smaller one first, or none",
    )
    noise_std: float = _real(
        0.0, SIZE, "standard deviation of the noise on the output while training", "generator_noise_var"
    )
    likelihood_std: float = _real(
        1.0, WIDTH, "a standard deviation; training divides the likelihood by twice its square", "generator_variance"
    )
    likelihood: Literal["bernoulli", "l2"] = _key("bernoulli", "the likelihood", "likelihood_model")
    output_activation: Literal["sigmoid", "tanh", "none"] = _key("sigmoid", "what turns outputs into data")
    gating_activation: str = _key("celu", "accepted without effect, as in the reference", min_length=1)


class GridUpdateConfig(Section):
    """[GRID_UPDATING]: when and by what the grids adapt."""

    update_prior: bool = _key(True, "whether the prior's grids adapt", "update_prior_grid")
    update_generator: bool = _key(True, "whether the generator's grids adapt", "update_llhood_grid")
    num_samples: int = _count(64, 1, 10**6, "draws that the grids adapt to", "num_grid_updating_samples")
    frequency: int = _count(50, 1, LARGEST_COUNT, "iterations until the second update", "grid_update_frequency")
    decay: float = _real(0.99, SHARE, "the period grows by (2 - decay)^iteration", "grid_update_decay")


class ThermodynamicConfig(Section):
    """[THERMODYNAMIC_INTEGRATION]: temperatures, for training by thermodynamic integration."""

    num_temps: int = _count(69, -1, 10**6, "temperatures T; importance sampling if 1 or less")
    exponent: float = _real(5.0, POSITIVE, "t_k = (k/T)^p", "p")
    estimator: Literal["trapezoid", "steppingstone", "telescoped"] = _key("trapezoid", "sum over temperatures")
    resampler: Literal["none", "stratified", "systematic", "residual"] = _key("none", "resampling scheme")
    resampling_threshold: float = _real(0.5, SHARE, "resample when the effective sample size falls below this share")
    moves_per_temperature: int = _count(
        0, 0, 10**6, "Metropolis moves at each temperature; they need a resampler, `stratified` if none is named"
    )


class TrainingConfig(Section):
    """[TRAINING]: data, sizes and limits."""

    batch_size: int = _count(64, 1, LARGEST_COUNT, "images in a batch")
    num_samples: int = _count(64, 1, LARGEST_COUNT, "prior samples S shared by a batch", "MC_expectation_sample_size")
    initial_sample_size: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = _key(
        None,
        "prior samples at first, doubled at equal intervals of the training up to MC_expectation_sample_size, which is "
        "halved as long as no fewer are left; none: as many as that from the first step on",
        allowed="an integer from 1 to 1000000000, or none",
    )
    num_train: int = _count(32000, 1, LARGEST_COUNT, "training images, the first of the training split", "N_train")
    num_test: int = _count(64, 1, LARGEST_COUNT, "test images, the first of the test split", "N_test")
    num_generated: int = _count(3200, 1, LARGEST_COUNT, "images generated at the end", "num_generated_samples")
    generation_batch_size: int = _count(64, 1, LARGEST_COUNT, "images generated at a time", "batch_size_for_gen")
    num_epochs: int = _count(10, 1, LARGEST_COUNT, "epochs", "N_epochs")
    use_gpu: bool = _key(True, "use a GPU if there is one")
    dataset: str = _key("MNIST", "name of the data set, or path of one's own (docs/data.md)", min_length=1)
    update_grid: str = _key("true", "accepted without effect, as in the reference", min_length=1)
    verbose: bool = _key(False, "print loss, gradient norm and grid updates as they happen")
    img_resize: tuple[Side, Side] | None = _key(
        None, "size to resize the images to", allowed="two integers from 1 to 4096 (height, width), or native"
    )
    seed: int = _count(1, 0, 2**63 - 1, "seed of all random numbers")
    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = _key(
        None, "stop training after so many seconds", allowed="a number greater than 0, or none"
    )
    compile: Literal["auto", "true", "false"] = _key(
        "auto", "compiled kernels; auto: in runs long enough to repay it, if a compiler works"
    )
    precision: Literal["fp32", "bf16", "auto"] = _key(
        "fp32",
        "precision of the generator's matrix products, parameters stay fp32; auto: bf16 where the processor has units "
        "for it (amx_bf16, avx512_bf16), or the GPU, else fp32",
    )
    checkpoint_every: int = _count(1, 1, LARGEST_COUNT, "epochs between checkpoints")
    checkpoint_minutes: float = _real(10.0, POSITIVE, "minutes between checkpoints within an epoch")
    gen_every: int = _count(0, 0, LARGEST_COUNT, "epochs between pictures of samples, in `evolution/`; 0: none")
    binarize: Literal["none", "static", "dynamic"] = _key(
        "none",
        "images to bits, each pixel 1 with the probability that is its grey value; static: once, of the same random "
        "numbers whatever the seed; dynamic: training images anew in each batch",
    )
    shard: Literal["batch", "samples"] = _key(
        "batch",
        "what several processes divide: the images of a batch, or the prior's samples; one is as exact as the other",
    )
    gradient_samples: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | Literal["all"] = _key(
        "all",
        "samples of each image that carry gradient, and make up the training loss; a test loss is always of all",
        allowed="all, or an integer from 1 to 1000000000",
    )
    gradient_selection: Literal["top", "resampled"] = _key(
        "top", "which ones, if not all: those of the largest weights, or drawn by their weights, which adds no bias"
    )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that N_train images make."""
        return math.ceil(self.num_train / self.batch_size)


class OptimizerConfig(Section):
    """[OPTIMIZER]."""

    type: Literal[
        "adam", "adamw", "sgd", "rms", "bfgs", "l-bfgs", "cg", "gd", "newton", "interior-point", "neldermead"
    ] = _key("adam", "the optimiser")
    learning_rate: float = _real(
        0.005,
        POSITIVE,
        "step size of adam, adamw, sgd, rms; where gd, cg and the first steps of bfgs, l-bfgs begin to search; "
        "without meaning for neldermead, and for newton, interior-point unless their direction fails",
    )
    lbfgs_memory: int = _count(100, 1, 10**6, "steps that L-BFGS remembers", "l-bfgs_memory")
    schedule: Literal["constant", "cosine", "step"] = _key(
        "constant",
        "course of the learning rate; cosine: falls to 0 over N_epochs, or max_seconds if that is over first; "
        "step: by step_factor",
    )
    prior_rate: float = _real(
        1.0, SIZE, "what the learning rate is multiplied by for the prior, with adam, adamw, sgd and rms"
    )
    warmup_steps: int = _count(0, 0, LARGEST_COUNT, "steps over which the learning rate rises, whatever its schedule")
    step_every: int = _count(3, 1, LARGEST_COUNT, "schedule = step: epochs after which the learning rate falls")
    step_factor: float = _real(0.5, OPEN_SHARE, "schedule = step: what the learning rate is then multiplied by")


class LineSearchConfig(Section):
    """[LINE_SEARCH]: for gd, cg, bfgs, l-bfgs, newton and interior-point."""

    type: Literal["morethuente", "strongwolfe", "backtrack", "hagerzhang"] = _key("morethuente", "the search")
    c_1: float = _real(1e-4, OPEN_SHARE, "constant of the decrease condition; below 0.5 for hagerzhang")
    c_2: float = _real(0.9, OPEN_SHARE, "constant of the curvature condition, above c_1; backtrack has none")
    rho: float = _real(
        0.5,
        OPEN_SHARE,
        "what backtrack shrinks a step by; the others too, where numbers are not finite",
    )
