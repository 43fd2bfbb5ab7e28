#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU; results under bench/results/<gpu>/.
#
#   scripts/gpu.sh [install|tests|train|bench|all]
#
# Each stage runs alone and may be run again: it goes on with what is not there. A missing part says
# why it is skipped. Variables:
#   PYTHON   the interpreter
#   WHEELS   a folder of wheels (and pycuda's sdist) to install from where there is no package index
#   DATA     a folder with neu_seg/; without it nothing is trained on real images
#   EPOCHS   of each training (30)
#   SECONDS_LEFT  of this call: no step goes on beyond them, and the archive is whole by then
#   ARCHIVE  a .tar.gz of the results, made anew after each step
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:-all}
python=${PYTHON:-python3}
wheels=${WHEELS:-}
data=${DATA:-${UNETRT_TEST_DATA:-data}}
work=${WORK:-build/gpu}
epochs=${EPOCHS:-30}
limit=480
deadline=$((SECONDS + ${SECONDS_LEFT:-100000} - 45)) # a step that is cut has 30 to end in
export PYTHONPATH=$PWD/typings${PYTHONPATH:+:$PYTHONPATH} # the package, where it is not installed
export PYTHONUNBUFFERED=1

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -1)
if [ -z "$gpu" ]; then
    echo "gpu: nvidia-smi shows no GPU: nothing was run" >&2
    exit 1
fi
slug=$(echo "$gpu" | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
results=bench/results/$slug
mkdir -p "$results" "$work"

say() { printf '== %s\n' "$*"; }

# Run a step under what is left of the time, keep its output. Its status, 124 for one that was cut.
step() {
    local name=$1 left=$((deadline - SECONDS))
    shift
    [ $left -gt $limit ] && left=$limit
    if [ $left -lt 20 ]; then
        say "$name: skipped, no time left"
        return 124
    fi
    say "$name: $*"
    timeout --signal=INT --kill-after=30 "$left" "$@" > "$results/$name.txt" 2>&1
    local status=$?
    tail -n 25 "$results/$name.txt"
    [ $status -eq 0 ] || echo "status $status" | tee -a "$results/$name.txt"
    [ -z "${ARCHIVE:-}" ] || tar czf "$ARCHIVE" -C bench/results "$slug"
    return $status
}

# By an import: a package may be there without what it stands on.
has() { "$python" -c "import $1" > /dev/null 2>&1; }

install() {
    local from=()
    [ -n "$wheels" ] && from=(--no-index --find-links "$wheels")
    local pair
    for pair in simplejpeg:simplejpeg cv2:opencv-python-headless onnx:onnx onnxscript:onnxscript \
        rich:rich matplotlib:matplotlib PIL:pillow pytest:pytest hypothesis:hypothesis \
        filelock:filelock pynvml:nvidia-ml-py onnxruntime:onnxruntime-gpu; do
        has "${pair%%:*}" && continue
        "$python" -m pip install --quiet "${from[@]}" --no-deps "${pair#*:}" \
            || echo "install: no ${pair#*:}"
    done
    if ! has "simplejpeg, cv2, torch, onnx, PIL, rich"; then
        echo "install: what every stage needs is not there: make dev, then PYTHON=.venv/bin/python;" \
            "or WHEELS with the packages named above" >&2
        return 1
    fi
    has onnxruntime || echo "install: no onnxruntime: fp16 plans are not judged, so not built"
    has pycuda.driver || PYCUDA_FROM=$wheels scripts/install_pycuda.sh "$python"
    has pycuda.driver || echo "install: FAILED: no pycuda: the CUDA slot does not run in any stage"
    # With its dependencies: by itself it is a shell around libraries that are packages of their own.
    has tensorrt || [ -n "$wheels" ] || "$python" -m pip install --quiet 'tensorrt-cu13>=10.12'
    has tensorrt || echo "install: no tensorrt: plans are neither built nor run"
    nvidia-smi > "$results/machine.txt"
    "$python" -m unetrt.cli doctor | tee -a "$results/machine.txt"
}

run_tests() {
    step tests "$python" -m pytest -q -m gpu tests/gpu
    if command -v compute-sanitizer > /dev/null; then
        step sanitizer compute-sanitizer --tool memcheck --error-exitcode 9 \
            "$python" -m pytest -q -m gpu tests/gpu/test_gpu_slot.py -k sanitizer
    else
        say "sanitizer: skipped, no compute-sanitizer on the path"
    fi
}

# Width 64 and 32 on neu_seg with the modern recipe. One that was cut goes on where it stood.
train() {
    local images=$data/neu_seg/train/imgs width run
    if [ ! -d "$images" ]; then
        echo "train: no $images: set DATA"
        return 0
    fi
    for width in 64 32; do
        run=$work/neu_seg-w$width
        [ -f "$run/done" ] && continue
        local from=(--out "$run")
        [ -f "$run/last.pth" ] && from=(--resume "$run")
        step "train-neu_seg-w$width" "$python" -m unetrt.cli train \
            --images "$images" --masks "$data/neu_seg/train/masks" \
            --val-images "$data/neu_seg/val/imgs" --val-masks "$data/neu_seg/val/masks" \
            --classes 4 --class-names background,inclusion,patches,scratches --channels 1 \
            --width "$width" --scale 1 --recipe modern --epochs "$epochs" --batch-size 16 --amp \
            "${from[@]}" && touch "$run/done"
        [ -f "$run/metrics.csv" ] && cp "$run/metrics.csv" "$results/neu_seg-w$width.csv"
    done
}

# Drawn pictures of four sizes, the largest as JPEG of twice its sides; a net of width 64 that has
# learnt them, so that its masks hold every class and a wrong one is seen.
prepare_bench() {
    [ -f "$work/drawn/done" ] && return 0
    "$python" - "$work" << 'END' || return 1
import sys
from pathlib import Path

import cv2

from unetrt.training.synthetic import draw_pair, write_dataset

work, drawn, linked = Path(sys.argv[1]), 32, 1024
write_dataset(work / "drawn-200", 400, (200, 200), seed=1)
for size in ((100, 100), (200, 200), (512, 512)):
    write_dataset(work / f"{size[0]}x{size[1]}", drawn, size)
photos = work / "640x959" / "imgs"
photos.mkdir(parents=True, exist_ok=True)
for index in range(drawn):
    image, _ = draw_pair(index, (1280, 1918))
    cv2.imwrite(str(photos / f"steel-{index:05}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
for folder in work.glob("*x*/imgs"):
    files = sorted(folder.iterdir())
    for index in range(len(files), linked):
        source = files[index % len(files)]
        target = folder / f"steel-{index:05}{source.suffix}"
        if not target.exists():
            target.hardlink_to(source)
END
    local from=(--out "$work/drawn")
    [ -f "$work/drawn/last.pth" ] && from=(--resume "$work/drawn")
    step train-drawn "$python" -m unetrt.cli train --images "$work/drawn-200/imgs" \
        --masks "$work/drawn-200/masks" --classes 4 --width 64 --scale 1 --recipe modern \
        --epochs 12 --batch-size 8 --amp --seed 1 "${from[@]}" && touch "$work/drawn/done"
}

# When the device copied and computed, slot by slot, for a browser's trace viewer.
timeline() {
    [ -f "$results/timeline.json" ] && return 0
    find "$work/640x959/imgs" -name '*.jpg' | sort | head -n 128 > "$work/timeline.txt"
    step timeline "$python" -m unetrt.cli predict -m "$work/drawn/best.pth" -i "@$work/timeline.txt" \
        --device cuda --scale 0.5 --batch 8 --slots 3 --output-dir "$work/timeline" --restart \
        --trace "$results/timeline.json"
}

# The reference net, every row; PyTorch's compiler tunes for minutes, so at the largest size alone.
bench() {
    if ! prepare_bench; then
        say "bench: skipped, no trained network: see train-drawn.txt"
        return 0
    fi
    timeline
    local size scale skip
    for size in 640x959 512x512 200x200 100x100; do
        if ls "$results/$size"/*.json > /dev/null 2>&1; then
            say "bench-$size: done before"
            continue
        fi
        scale=1 skip=(--skip torch-compile)
        [ $size = 640x959 ] && scale=0.5 skip=()
        step "bench-$size" "$python" -m unetrt.cli bench "$work/drawn/best.pth" \
            --images "$work/$size/imgs" --device cuda --scale $scale --seconds 1 --repeats 3 \
            --batch 8 --limit $([ $size = 640x959 ] && echo 128 || echo 512) \
            --row-timeout 240 "${skip[@]}" --report "$results/$size"
    done
}

case $stage in
    install) install || exit 1 ;;
    tests) run_tests ;;
    train) train ;;
    bench) bench ;;
    all) install || exit 1; run_tests; bench; train ;;
    *) echo "no stage $stage: install, tests, train, bench or all" >&2; exit 2 ;;
esac
say "results in $results"
