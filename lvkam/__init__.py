"""LV-KAM: a generative model written entirely in two sums of learnt univariate functions.

    import lvkam
    config    = lvkam.load_config("nist_config.ini")
    model     = lvkam.build_model(config, data_dim=196)
    objective = lvkam.build_objective(config)

Names are loaded when first used, so that what needs no torch does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvkam.build import build_model, build_objective, load_model, save_model
    from lvkam.config import Config, ConfigError, load_config
    from lvkam.evidence import Evidence, annealed_log_evidence, importance_log_evidence
    from lvkam.experiment import run_experiment
    from lvkam.model import LVKAM
    from lvkam.objectives import ImportanceSampling, ThermodynamicIntegration

__all__ = [
    "LVKAM",
    "Config",
    "ConfigError",
    "Evidence",
    "ImportanceSampling",
    "ThermodynamicIntegration",
    "annealed_log_evidence",
    "build_model",
    "build_objective",
    "importance_log_evidence",
    "load_config",
    "load_model",
    "run_experiment",
    "save_model",
]

_HOMES = {
    "Config": "config",
    "ConfigError": "config",
    "load_config": "config",
    "Evidence": "evidence",
    "annealed_log_evidence": "evidence",
    "importance_log_evidence": "evidence",
    "build_model": "build",
    "build_objective": "build",
    "load_model": "build",
    "save_model": "build",
    "run_experiment": "experiment",
    "LVKAM": "model",
    "ImportanceSampling": "objectives",
    "ThermodynamicIntegration": "objectives",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lvkam' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lvkam.{_HOMES[name]}"), name)
