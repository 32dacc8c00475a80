#!/usr/bin/env bash
# There: a copy of the tree, the wheels, and the chain in a session of its own, which outlives this call.
set -euo pipefail
cd "$(dirname "$0")/../.."
home=${SELFSAME_HOME:-/tmp/selfsame}
mkdir -p "$home"
cp -r . "$home/"
python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$home/.gpu-site" .whl/*.whl
setsid nohup bash "$home/benchmarks/on_gpu/chain.sh" > "$home/chain.log" 2>&1 &
nvidia-smi -L
