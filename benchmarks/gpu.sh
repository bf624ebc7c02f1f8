#!/usr/bin/env bash
# Everything that needs a GPU, in less than 8 minutes: build for this device, the gpu tests, the
# kernels under compute-sanitizer, the benchmarks, and at the very end the table.
#   PYTHON=.venv/bin/python benchmarks/gpu.sh
# It needs the package's dependencies in $PYTHON, and nvcc on PATH or in CUDA_HOME. Without a device
# it runs nothing. Each part has its own limit; one that fails or takes too long does not stop the
# next. The exit status is 1 if any did.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
LIMIT="${LIMIT:-450}"

device="$("$PYTHON" - <<'END'
import torch
if torch.cuda.is_available():
    print("{}.{} {}".format(*torch.cuda.get_device_capability(), torch.cuda.get_device_name()))
END
)"
if [ -z "$device" ]; then
  echo "no CUDA device that torch can use: nothing was run"
  exit 0
fi
export ROLI_FAST_CUDA_ARCHS="${device%% *}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
name="$(echo "${device#* }" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9.-')"
folder="benchmarks/results/$name"
log="$(mktemp -d)"
failed=""

part() {  # name, seconds, command...
  local what="$1" limit="$2" left=$((LIMIT - SECONDS)) status=0
  shift 2
  [ "$left" -lt "$limit" ] && limit="$left"
  if [ "$limit" -lt 5 ]; then
    echo "== $what: no time left"; failed="$failed $what"; return
  fi
  echo "== $what: at most $limit s"
  timeout -k 5 "$limit" "$@" >"$log/$what" 2>&1 || status=$?
  tail -n 15 "$log/$what"
  if [ "$status" -ne 0 ]; then
    echo "== $what: status $status, the whole of it in $log/$what"; failed="$failed $what"
  fi
}

part build 120 env ROLI_FAST_BUILD=cuda "$PYTHON" setup.py build_ext --inplace
part tests 90 "$PYTHON" -m pytest -q -m gpu
if command -v compute-sanitizer >/dev/null; then
  part sanitizer 75 compute-sanitizer --error-exitcode 9 "$PYTHON" -m pytest -q -m gpu -x tests/native
else
  echo "== sanitizer: compute-sanitizer is not on PATH"; failed="$failed sanitizer"
fi
# what has targets comes first; its last lines are the table
part benchmarks 240 "$PYTHON" -m pytest benchmarks --benchmark-only \
  -k "gpu or train or pgd or lora or switches" --device cuda --scale 0.15 --out "$folder"
[ -n "$failed" ] && echo "== failed or cut short:$failed"
(cd benchmarks && timeout -k 5 20 "$PYTHON" -m harness.report "../$folder")
[ -z "$failed" ]
