#!/usr/bin/env bash
# Install TensorRT's own Python bindings, without its libraries, with the python given: a test
# checks by them that every name we use exists. Nothing where there is no index or no gcc.
set -euo pipefail
python=$(command -v "$1")
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints.txt

found="import importlib.util as u, sys; sys.exit(u.find_spec('tensorrt_bindings') is None)"
if "$python" -c "$found"; then
    exit 0
fi
if ! command -v gcc > /dev/null; then
    echo "TensorRT's bindings: no gcc; the names we use will be checked for TensorRT-RTX only"
    exit 0
fi
if ! "$python" -m pip install --quiet --no-deps -c "$constraints" tensorrt-cu13-bindings; then
    echo "TensorRT's bindings: no wheel; the names we use will be checked for TensorRT-RTX only"
fi
