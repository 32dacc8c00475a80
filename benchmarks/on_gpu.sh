#!/usr/bin/env bash
# The whole miniature on a GPU machine that has torch but no network, in stages that fit ten minutes each:
#
#   bash benchmarks/on_gpu.sh wheels     here: the few packages such a machine lacks, into .whl (ignored; they travel with the tree)
#   bash benchmarks/on_gpu.sh data       there: install, render, prepare pairs
#   bash benchmarks/on_gpu.sh small      there: faces, VAE, CLIP and the other small models, each from the weights that ship
#   bash benchmarks/on_gpu.sh base       there: the base, long
#   bash benchmarks/on_gpu.sh methods    there: InstantID and MimicBrush
#   bash benchmarks/on_gpu.sh out DIR    there: all weights as parts below 16 MB; `cat weights.tar.*.part | tar x` in src/selfsame/weights puts them back
#
# A stage may be called again: runs go on where they were. MINUTES shortens or lengthens one.
set -euo pipefail
cd "$(dirname "$0")/.."
site=.gpu-site
export PYTHONPATH="src:$site" PYTHONUNBUFFERED=1
world=data/world2
selfsame() { python3 -m selfsame "$@"; }
timed() { local began=$SECONDS; "$@"; echo "== $* : $((SECONDS - began)) s"; }
train() { timed selfsame train "$1" --minutes "$2" --ship "${@:3}" 2>&1 | tail -n 3; }

case "${1:-}" in
wheels)
    mkdir -p .git/info
    grep -qs '^/.whl/$' .git/info/exclude || printf '/.whl/\n/%s/\n' "$site" >> .git/info/exclude
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 -d .whl "diffusers>=0.42" "tyro>=1.0" "webdataset>=1.0" docstring-parser typeguard shtab braceexpand importlib-metadata zipp
    du -sh .whl
    ;;
data)
    python3 -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl
    nvidia-smi -L && selfsame doctor
    cores=$(nproc)
    timed selfsame render --dataset $world --split train --count "${TRAIN:-80000}" --processes "$cores" --pack | tail -n 1
    timed selfsame render --dataset $world --split judge --count "${JUDGE:-40000}" --processes "$cores" --pack | tail -n 1
    for split in validation test; do timed selfsame render --dataset $world --split $split --count 800 --processes "$cores" --pack | tail -n 1; done
    timed selfsame prepare pairs --world "${CLIPS:-8000}" --out $world/pairs --processes "$cores"
    timed selfsame prepare pairs --world 200 --split validation --out $world/pairs --processes "$cores"
    ;;
small)
    m=${MINUTES:-1}
    for name in encoder judge; do train $name "$m" --warm; done
    train vae "$(python3 -c "print(2 * $m)")" --warm
    train clip "$m" --warm
    for name in face_vit detector parser depth reader; do train $name "$(python3 -c "print($m / 2)")"; done
    ;;
base) train base "${MINUTES:-8.5}" ;;
methods)
    train instantid "${MINUTES:-5}"
    train mimicbrush "${MINUTES:-3.5}"
    ;;
out)
    out=${2:?give a folder}
    tar c -C src/selfsame/weights mannequin_files | split -b 15m -d --additional-suffix=.part - "$out/weights.tar."
    tar c runs/*/log.csv runs/*/curve.png > "$out/curves.tar" 2> "$out/left-out.txt" || true  # a machine gives back eight files
    ls -la "$out"
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
