#!/usr/bin/env bash
# Set up what is missing, then lint, type-check and test. Options go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/basedpyright
exec $bin/python -m pytest -n auto --maxprocesses 8 "$@"
