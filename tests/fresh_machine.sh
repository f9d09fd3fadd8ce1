#!/usr/bin/env bash
# As a stranger does it: a clone in an empty folder, an empty HOME, the README's two commands; then the wheel alone in an
# environment of its own. Looks at what they left, and tells how long each took. A quarter of an hour on 2 cores and 4 GB
# of disk, which are given back.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/home" "$work/elsewhere"
# what leads to the package index, and nothing else of this environment
mapfile -t index < <(env | grep -iE '^(pip_|ssl_cert|requests_ca|[a-z]+_proxy=)' || true)

stranger() {
    env -i HOME="$work/home" PATH="$PATH" LANG=C.UTF-8 ${PYTHON:+PYTHON="$PYTHON"} "${index[@]}" "$@"
}

timed() {
    local start
    start=$(date +%s)
    "$@"
    took=$(($(date +%s) - start))
}

must() {
    "$@" || { echo "fresh_machine: not so: $*" >&2; exit 1; }
}

git clone --quiet "$repository" "$work/lvkam"
cd "$work/lvkam"
mapfile -t commands < <(awk '/^```/ { n++ } n == 1 && /^bash / { sub(/ *#.*/, ""); print }' README.md)
must [ "${#commands[@]}" = 2 ]
for command in "${commands[@]}"; do
    echo "\$ $command"
    timed stranger bash -c "$command"
    echo "fresh_machine: $command: $took s"
done

run=logs/Thermodynamic/uniform/MNIST_1
for name in config.ini loss.csv loss.png ckpt.h5 best.h5 {real,generated}_images.{h5,png}; do
    must [ -s "$run/$name" ]
done
stranger .venv/bin/python - "$run" <<'PY'
import csv, sys
from pathlib import Path
import h5py
run = Path(sys.argv[1])
samples = h5py.File(run / "generated_images.h5")["samples"][()]
assert samples.shape == (3200, 14, 14), samples.shape
assert 0 <= samples.min() < 0.05 and 0.95 < samples.max() <= 1 and samples.std() > 0.15  # of real images: 0.25
last = list(csv.DictReader((run / "loss.csv").open()))[-1]
assert float(last["Test NLL"]) < 50, last
print(f"fresh_machine: epoch {last['Epoch']}, test NLL {float(last['Test NLL']):.2f}, {last['Time (s)']} s of training")
PY
must stranger .venv/bin/python -m pip check
must [ -z "$(git status --porcelain)" ]
echo "fresh_machine: left in HOME:" && find "$work/home" -mindepth 1 -maxdepth 2 | sed "s|^$work/home/|  |"

stranger .venv/bin/python -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }
cp nist_config.ini setup/constraints.txt "$work/elsewhere"
rm -rf .venv
cd "$work/elsewhere"
timed stranger bash -c "${PYTHON:-python3} -m venv wheel && wheel/bin/python -m pip install -q --disable-pip-version-check \
    -c constraints.txt $work/dist/*.whl"
echo "fresh_machine: installing the wheel: $took s"
export PATH="$work/elsewhere/wheel/bin:$PATH"
must stranger python -m pip check
must stranger lvkam --version
must stranger python -m lvkam --version
timed stranger lvkam train nist_config.ini --set TRAINING.N_epochs=2 --output run
echo "fresh_machine: two epochs by the wheel: $took s"
stranger lvkam sample run/ckpt.h5 -n 100
stranger lvkam plot run/ckpt.h5 --what prior
stranger lvkam report run
for name in samples.h5 samples.png prior.png report.html; do
    must [ -s "$name" ]
done
echo "fresh_machine: all is there"
