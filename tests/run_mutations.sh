#!/usr/bin/env bash
# Faults are put into a copy of the code, one after the other: a test must catch each. Options go to tests/mutations.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
exec .venv/bin/python -m tests.mutations "$@"
