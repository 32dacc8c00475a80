#!/usr/bin/env bash
# Every model whose figure falls short, in the order in which they need each other; see README.md.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH=src:.gpu-site PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
data=data/world2
mkdir -p runs $data
began=$(date +%s)
say() { echo "$(($(date +%s) - began)) s: $*" >> runs/timeline; }
need() { until [ -e "$data/.ready-$1" ]; do
    [ ! -e runs/.failed ] || exit 1
    sleep 1
done; }
train() {
    say "$1 begins"
    timeout 1200 python3 -m selfsame train "$1" --data $data --minutes "$2" --steps 1000000 --fit --ship "${@:3}" > "runs/$1.log" 2>&1
    say "$1 ends ($?): $(grep -a "^$1: " "runs/$1.log" | tail -n 1 | cut -c1-200)"
}
caches() {  # one step of a run, for all that it computes once
    OMP_NUM_THREADS=6 python3 - "$1" > "runs/caches-$1.log" 2>&1 << 'PY'
import sys
from selfsame.recipes.catalogue import recipes
from selfsame.recipes.common import Options

recipe = recipes()[sys.argv[1]]
recipe(Options(steps=1, warm=True), name=f"caches-{sys.argv[1]}")
PY
    say "caches of $1 made ($?)"
}

(
    OMP_NUM_THREADS=1 python3 benchmarks/on_gpu/render.py $data validation:0:800 train:0:24000 judge:0:${JUDGE:-24000} train:24000:${TRAIN:-40000} > runs/render.log 2>&1 || touch runs/.failed
    say rendered
    for more in "--world ${CLIPS:-2400}" "--world 100 --split validation"; do
        OMP_NUM_THREADS=1 python3 -m selfsame prepare pairs $more --out $data/pairs --processes 11 >> runs/pairs.log 2>&1
    done
    say "pairs made"
    touch $data/.ready-pairs
) &
(need train-24000; train decoder 1.3; train parser 0.6 --warm) &
(need train-24000; train face_vit 1.3 --warm; train depth 0.6 --warm) &
(need judge-${JUDGE:-24000}; train judge 1.4 --warm) &
need "train-${TRAIN:-40000}"
train base "${BASE:-5.0}" --warm &
base=$!
(sleep 45; caches instantid; need pairs; caches mimicbrush; touch $data/.ready-caches) &
wait $base
(need caches; train mimicbrush "${MIMICBRUSH:-2.3}" --warm) &
mimicbrush=$!
train instantid "${INSTANTID:-6.5}" --warm
train turbo "${TURBO:-1.5}"
wait $mimicbrush
say "measuring"
mkdir -p runs/measured
timeout 300 python3 -m selfsame evaluate models --rows base --device cuda --out runs/measured/models > runs/measured/models.log 2>&1
say "base measured ($?)"
wait
touch runs/.done
