#!/usr/bin/env bash
# Run all benchmarks, one after the other, and sum them up: text, CSV and a picture of each in benchmarking/results.
# Options: --quick (two to three minutes, most of it compiling; into results/quick), --output DIR. Other KAN libraries take part where
# `pip install -e .[bench]` has installed them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
for name in kan_layers prior train_step temperatures sampling latent_dim scaling; do
    "$python" -m "benchmarking.$name" "$@"
done
"$python" -m benchmarking.summary "$@"
