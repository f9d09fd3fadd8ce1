#!/usr/bin/env bash
# Which lines the tests run: fails under 95 % of those of lvkam/. Options go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
.venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal --cov --cov-report= "$@"
exec .venv/bin/python -m coverage report --include='lvkam/*' --fail-under=95
