#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU; results under bench/results/<gpu>/.
#
#   scripts/gpu.sh [install|tests|train|bench|all]
#
# Each stage runs alone, in under 8 minutes, and may be run again; a missing part says why it is
# skipped. PYTHON: the interpreter. WHEELS: a folder of wheels (and pycuda's sdist) to install from
# where there is no package index. DATA: a folder with neu_seg/; without it, drawn pictures.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:-all}
python=${PYTHON:-python3}
wheels=${WHEELS:-}
data=${DATA:-${UNETRT_TEST_DATA:-data}}
work=${WORK:-build/gpu}
limit=480

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -1)
if [ -z "$gpu" ]; then
    echo "gpu: nvidia-smi shows no GPU: nothing was run" >&2
    exit 1
fi
slug=$(echo "$gpu" | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
results=bench/results/$slug
mkdir -p "$results" "$work"

say() { printf '== %s\n' "$*"; }

# Run a step under the limit, keep its output, go on when it fails.
step() {
    local name=$1
    shift
    say "$name: $*"
    timeout "$limit" "$@" > "$results/$name.txt" 2>&1
    local status=$?
    tail -n 25 "$results/$name.txt"
    [ $status -eq 0 ] || echo "status $status" | tee -a "$results/$name.txt"
    return 0
}

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

install() {
    local from=()
    [ -n "$wheels" ] && from=(--no-index --find-links "$wheels")
    "$python" -m pip install --quiet --no-deps --no-build-isolation -e . || return
    for package in simplejpeg onnx onnxscript rich matplotlib pillow openvino pytest hypothesis \
        pytools platformdirs mako nvidia-ml-py tensorrt-cu13; do
        "$python" -m pip install --quiet "${from[@]}" --no-deps "$package" \
            || echo "install: no $package"
    done
    PYCUDA_FROM=$wheels scripts/install_pycuda.sh "$python" || echo "install: no pycuda"
    has tensorrt || echo "install: no tensorrt: plans are neither built nor run"
    nvidia-smi > "$results/machine.txt"
    "$python" -m unetrt.cli doctor | tee -a "$results/machine.txt"
}

run_tests() { step tests "$python" -m pytest -q -m gpu tests/gpu; }

# Width 32 and 64 on neu_seg with the modern recipe; a checkpoint that is there is kept.
train() {
    local images=$data/neu_seg/train/imgs
    if [ ! -d "$images" ]; then
        echo "train: no $images: set DATA"
        return 0
    fi
    for width in 32 64; do
        local run=$work/neu_seg-w$width
        [ -f "$run/best.pth" ] && continue
        rm -rf "$run"
        step "train-neu_seg-w$width" "$python" -m unetrt.cli train \
            --images "$images" --masks "$data/neu_seg/train/masks" \
            --val-images "$data/neu_seg/val/imgs" --val-masks "$data/neu_seg/val/masks" \
            --classes 4 --class-names background,inclusion,patches,scratches --channels 1 \
            --width "$width" --scale 1 --recipe modern --epochs 30 --batch-size 16 --amp \
            --out "$run"
        [ -f "$run/metrics.csv" ] && cp "$run/metrics.csv" "$results/neu_seg-w$width.csv"
    done
}

# The reference net at four sizes. Untrained weights: speed is the question here.
bench() {
    "$python" - "$work" << 'END' || return 0
import sys
from pathlib import Path

import torch

from unetrt.contract.spec import ModelSpec
from unetrt.training.checkpoint import Checkpoint, write_checkpoint
from unetrt.training.synthetic import write_dataset
from unetrt.training.unet import UNet

work = Path(sys.argv[1])
torch.manual_seed(0)
net = UNet(3, 2, 64)
write_checkpoint(work / "w64.pth", Checkpoint(ModelSpec(scale=1.0), net.eval().state_dict()))
for height, width in ((100, 100), (200, 200), (512, 512), (640, 959)):
    write_dataset(work / f"{height}x{width}", 64, (height, width))
END
    for size in 100x100 200x200 512x512 640x959; do
        local models=("$work/w64.pth")
        if has tensorrt && has pycuda; then
            "$python" -m unetrt.cli build "$work/w64.pth" -o "$work/plan-$size" \
                --backend tensorrt --batch 1,8,8 --size "$size" --force && \
                models+=("$work/plan-$size")
        fi
        step "bench-$size" "$python" -m unetrt.cli bench "${models[@]}" \
            --images "$work/$size/imgs" --device cuda --seconds 3 --repeats 3 --batch 8 --report "$results/$size"
    done
}

case $stage in
    install) install ;;
    tests) run_tests ;;
    train) train ;;
    bench) bench ;;
    all) install && run_tests && train && bench ;;
    *) echo "no stage $stage: install, tests, train, bench or all" >&2; exit 2 ;;
esac
say "results in $results"
