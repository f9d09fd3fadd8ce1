#!/usr/bin/env bash
# Set up what is missing, then lint, type-check and test. Options go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
# FashionMNIST is no part of the repository; where its files lie beside it, the tests that need them run too.
if [ -z "${LVKAM_DATA_DIR:-}" ] && [ -d ../shared/data ]; then
    LVKAM_DATA_DIR=$(cd ../shared/data && pwd)
    export LVKAM_DATA_DIR
fi
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/basedpyright
exec $bin/python -m pytest -n auto --maxprocesses 8 "$@"
