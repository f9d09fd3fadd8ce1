#!/usr/bin/env bash
# Make .venv at the root of the repository and install lvkam with its tools into it.
# Run it again at any time: when nothing has changed it takes a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

if ! python=$(find_python); then
    echo "setup: lvkam needs Python 3.11 or newer; found: $(python3 --version 2>&1 || true)." >&2
    echo "setup: install one, or name it: PYTHON=/path/to/python3.11 bash setup/setup.sh" >&2
    exit 2
fi
if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    echo "setup: $python cannot make virtual environments; on Debian install the package python3-venv." >&2
    exit 2
fi

# What was installed for this state of the project is not installed again.
state=$(cat pyproject.toml setup/constraints.txt | cksum; "$python" --version; pwd)
stamp=.venv/lvkam-setup
if [ -x .venv/bin/lvkam ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && .venv/bin/python -c '' 2>/dev/null; then
    echo "setup: .venv is up to date"
    exit 0
fi

echo "setup: installing into .venv with $("$python" --version); torch and its companions are about 0.5 GB to" \
    "download and 1.9 GB on disk (more where the index offers a GPU build): half a minute to a few minutes"
rm -f "$stamp"
"$python" -m venv --clear .venv
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! .venv/bin/python -m pip install --disable-pip-version-check --constraint setup/constraints.txt \
    --editable '.[dev]' >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: the installation failed; what pip said is above" >&2
    exit 1
fi
printf '%s\n' "$state" >"$stamp"
echo "setup: done; the program is .venv/bin/lvkam"
