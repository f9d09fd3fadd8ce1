#!/usr/bin/env bash
# From a clone to digits: set up, then train nist_config.ini. Options go to `lvkam train`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/setup.sh
folder=$(.venv/bin/lvkam train nist_config.ini "$@" | tail -n 1)
echo "Look at $folder/generated_images.png, drawn by the model, beside $folder/real_images.png."
echo "Draw more: .venv/bin/lvkam sample $folder/ckpt.h5 -n 1000 --seed 2"
echo "Better ones, in less time: .venv/bin/lvkam train config/mnist_quality.ini"
