#!/usr/bin/env bash
# Set up what is missing, then lint, type-check and test. Options go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
# Compiled kernels are tested where a C++ compiler works; elsewhere those tests are skipped and say why.
if ! command -v c++ >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -q && apt-get install -q -y g++; } >/dev/null 2>&1 || echo "run_tests: no C++ compiler could be installed"
fi
# Reports are opened in a browser where there is one; likewise.
if ! command -v chromium chromium-browser google-chrome >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -q && apt-get install -q -y chromium; } >/dev/null 2>&1 || echo "run_tests: no Chromium could be installed"
fi
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/basedpyright
exec $bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
