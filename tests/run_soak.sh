#!/usr/bin/env bash
# The reliability tests in their whole form, under half an hour on 2 cores; their figures as a Markdown table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
report=$(mktemp)
trap 'rm -f "$report"' EXIT
start=$(date +%s)
LVKAM_SOAK=1 LVKAM_SOAK_REPORT="$report" OMP_NUM_THREADS=1 \
    .venv/bin/python -m pytest tests/reliability -m "slow or not slow" -n 2 --dist worksteal "$@"
.venv/bin/python -m tests.reliability.harness "$report"
echo "$(( $(date +%s) - start )) s"
