#!/usr/bin/env bash
# Here, with a network: what a machine with torch and transformers lacks, as wheels for its Python 3.12.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux2014_x86_64 -d .whl "diffusers>=0.42" "tyro>=1.0" "webdataset>=1.0" docstring-parser typeguard shtab braceexpand importlib-metadata zipp
du -sh .whl
