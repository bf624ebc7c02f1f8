#!/usr/bin/env bash
# What needs a GPU, in named steps, the most valuable first; see gpu_steps.py and README.md.
#   PYTHON=.venv/bin/python benchmarks/gpu.sh              at most 290 s; call it again to go on
#   PYTHON=.venv/bin/python benchmarks/gpu.sh --rehearse   every step on the CPU, tiny
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu_steps.py "$@"
