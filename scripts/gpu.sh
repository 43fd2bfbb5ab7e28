#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU; results under bench/results/<gpu>/.
#
#   scripts/gpu.sh [install|tests|train|prepare|bench|all]
#
# prepare makes what the bench runs on, which `bench` does by itself too.
#
# Each stage runs alone and may be run again: it goes on with what is not there. A missing part says
# why it is skipped. Exit status 1 where a step failed or was cut: it says which command goes on.
# On an H100 an epoch at width 64 takes 7 s. Where time is short: EPOCHS=12, SECONDS_LEFT. Variables:
#   PYTHON   the interpreter; else that of .venv where there is one
#   WHEELS   a folder of wheels (pybind11's, too) and pycuda's sdist, to install from where there is
#            no package index; TensorRT's of any version, the others those of constraints.txt
#   DATA     a folder with neu_seg/; without it nothing is trained on real images
#   EPOCHS   of each training (30)
#   SIZES    of the bench, in this order (100x100 200x200 512x512 640x959)
#   SKIP     rows that the bench leaves out at every size, as bench --skip
#   COMPILE  1: torch-compile too, whose tuning takes minutes at each size; only where a size has no
#            whole report yet
#   ROW_SECONDS  of each row of the bench (120, with COMPILE 240): it is given up then
#   STAGE_SECONDS  of each stage (480): what is not done by then, the same command goes on with
#   SECONDS_LEFT  of this call: no step goes on beyond them, and the archive is whole by then
#   ARCHIVE  a .tar.gz of the results, made anew all the time, whole at any moment
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:-all}
at=$stage # of `all` the one at work
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
wheels=${WHEELS:-}
data=${DATA:-${UNETRT_TEST_DATA:-data}}
work=${WORK:-build/gpu}
epochs=${EPOCHS:-30}
sizes=${SIZES:-100x100 200x200 512x512 640x959}
end=$((SECONDS + ${SECONDS_LEFT:-100000} - 45)) # a step that is cut has 30 to end in
deadline=$end
export PYTHONPATH=$PWD/typings${PYTHONPATH:+:$PYTHONPATH} # the package, where it is not installed
export PYTHONUNBUFFERED=1

# A broken driver is told on stdout, where the name would be: the status decides.
if ! gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null) || [ -z "$gpu" ]; then
    echo "gpu: nvidia-smi shows no GPU: nothing was run. It says:" >&2
    nvidia-smi >&2
    exit 1
fi
gpu=${gpu%%$'\n'*}
slug=$(echo "$gpu" | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
results=bench/results/$slug
mkdir -p "$results" "$work"
failed=0

say() { printf '== %s\n' "$*"; }

# The command that goes on with the stage at work, as this one was called.
go_on() {
    local name words=()
    for name in PYTHON WHEELS DATA WORK EPOCHS SIZES SKIP COMPILE ROW_SECONDS STAGE_SECONDS ARCHIVE; do
        [ -z "${!name:-}" ] || words+=("$name=$(printf %q "${!name}")")
    done
    echo "go on with: ${words[*]:+${words[*]} }scripts/gpu.sh $at"
}

# Without a GPU that torch sees the tests would all be skipped, which looks like a success.
torch_sees='import sys, torch
print(f"torch {torch.__version__} for CUDA {torch.version.cuda}")
sys.exit(0 if torch.cuda.is_available() else 3)'
require_cuda() {
    local told status driver
    told=$("$python" -c "$torch_sees" 2>&1)
    status=$?
    [ $status -eq 0 ] && return 0
    if [ $status -eq 3 ]; then
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
        echo "gpu: torch sees no GPU, nvidia-smi shows $gpu with driver $driver: nothing was run"
        echo "$told"
        echo "Hint: a driver for that CUDA or newer (none: a build without CUDA), and no" \
            "CUDA_VISIBLE_DEVICES that hides the GPU"
    else
        echo "gpu: $python has no torch: nothing was run"
        echo "$told"
        echo "Hint: make dev, then PYTHON=.venv/bin/python"
    fi >&2
    exit 1
}

# Hold what follows to the seconds of one stage, of `all` the one named.
begin_stage() {
    at=${1:-$at}
    deadline=$((SECONDS + ${STAGE_SECONDS:-480} - 45))
    [ $deadline -le $end ] || deadline=$end
}

# A command within the stage's time.
within() {
    local left=$((deadline - SECONDS)) status=0
    timeout --kill-after=30 $((left > 1 ? left : 1)) "$@" || status=$?
    if was_cut $status; then
        failed=1
        say "cut: $*; $(go_on)" >&2
    fi
    return $status
}

# By `timeout`, which says 137 of what it had to kill; so does a machine that is out of memory.
was_cut() { [ "$1" -eq 124 ] || { [ "$1" -eq 137 ] && [ $SECONDS -ge $deadline ]; }; }

pip_install() { within "$python" -m pip install --quiet "$@"; }

# Run a step under what is left of the time, keep its output. Its status, 124 for one that was cut.
step() {
    local name=$1 left=$((deadline - SECONDS))
    shift
    if [ $left -lt 20 ]; then
        say "$name: skipped, no time left; $(go_on)"
        failed=1 # it is not done, and there is nothing that it misses
        return 124
    fi
    say "$name: $*"
    # A call that is ended from outside comes to no line after its step.
    while sleep 2 && kill -0 $$; do keep; done > /dev/null 2>&1 &
    local keeper=$!
    timeout --signal=INT --kill-after=30 "$left" "$@" > "$results/$name.txt" 2>&1
    local status=$?
    kill $keeper
    tail -n 25 "$results/$name.txt"
    [ $status -eq 0 ] || { failed=1; echo "status $status" | tee -a "$results/$name.txt"; }
    ! was_cut $status || say "$name: cut; $(go_on)"
    keep
    return $status
}

# What there is so far, trainings and a bench row by row among it.
keep() {
    keep_curves
    [ -z "${ARCHIVE:-}" ] || pack
}

# Renamed when it is whole: a call that is ended meanwhile leaves the one of before. 1: a file grew.
pack() {
    local part=$ARCHIVE.$BASHPID.part # the one of before may have been ended at work
    rm -f "$ARCHIVE".*.part
    tar czf "$part" -C bench/results "$slug" || [ $? -eq 1 ] || return
    mv "$part" "$ARCHIVE"
}

# What the trainings have written so far, whole or cut.
keep_curves() {
    local run part=$work/curve.$BASHPID # the loop beside a training keeps them too
    for run in "$work"/neu_seg-w*; do
        [ -s "$run/metrics.csv" ] || continue
        cp "$run/metrics.csv" "$part" && mv "$part" "$results/${run##*/}.csv"
    done
}

# By an import: a package may be there without what it stands on.
has() { "$python" -c "import $1" > /dev/null 2>&1; }

install() {
    local from=(-c constraints.txt) pair
    [ -n "$wheels" ] && from+=(--no-index --find-links "$wheels")
    for pair in simplejpeg:simplejpeg cv2:opencv-python-headless google.protobuf:protobuf onnx:onnx \
        ml_dtypes:ml_dtypes onnx_ir:onnx-ir onnxscript:onnxscript \
        rich:rich matplotlib:matplotlib PIL:pillow zlib_ng:zlib-ng pytest:pytest hypothesis:hypothesis \
        filelock:filelock pynvml:nvidia-ml-py flatbuffers:flatbuffers onnxruntime:onnxruntime-gpu \
        mako:mako platformdirs:platformdirs pytools:pytools; do
        has "${pair%%:*}" && continue
        pip_install "${from[@]}" --no-deps "${pair#*:}" || echo "install: no ${pair#*:}"
    done
    if ! has "simplejpeg, zlib_ng, cv2, torch, onnx, onnxscript, PIL, rich"; then
        echo "install: what every stage needs is not there: make dev, then PYTHON=.venv/bin/python;" \
            "or WHEELS with the packages named above" >&2
        return 1
    fi
    has onnxruntime || echo "install: no onnxruntime: fp16 plans are not judged, so not built"
    has pycuda.driver || PYCUDA_FROM=$wheels within scripts/install_pycuda.sh --required "$python"
    has pycuda.driver || {
        failed=1
        echo "install: FAILED: no pycuda: the CUDA slot does not run in any stage"
    }
    has tensorrt || install_flavour 'tensorrt-cu13>=10.12'
    has tensorrt || echo "install: no tensorrt: plans are neither built nor run"
    has tensorrt_rtx || install_flavour 'tensorrt-rtx-cu13>=1.4'
    has tensorrt_rtx || echo "install: no tensorrt_rtx: its plans are neither built nor run"
    nvidia-smi > "$results/machine.txt"
    within "$python" -m unetrt.cli doctor | tee -a "$results/machine.txt"
}

# TensorRT or TensorRT-RTX, with its dependencies: by itself it is a shell around libraries that are
# packages of their own. Of a folder all that it has of them: the machine's version, not ours.
install_flavour() {
    local name=${1%%-cu*} file found=()
    if [ -z "$wheels" ]; then
        pip_install -c constraints.txt "$1"
        return
    fi
    for file in "$wheels/${name/-/_}"[-_]*.whl; do
        file=${file##*/}
        [ "$name" = tensorrt ] && [ "${file#tensorrt_rtx}" != "$file" ] && continue
        [ "${file#*\*}" = "$file" ] && found+=("${file%%-*}")
    done
    [ ${#found[@]} -eq 0 ] || pip_install --no-index --find-links "$wheels" --no-deps "${found[@]}"
}

run_tests() {
    step tests "$python" -m pytest -q -m gpu tests/gpu
    if command -v compute-sanitizer > /dev/null; then
        step sanitizer compute-sanitizer --tool memcheck --error-exitcode 9 \
            "$python" -m pytest -q -m gpu tests/gpu -k "sanitizer or the_kernel"
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
    done
}

# Drawn pictures of four sizes, the largest as JPEG of twice its sides; a net of width 64 that has
# learnt them, so that its masks hold every class and a wrong one is seen.
prepare_bench() {
    [ -f "$work/drawn/done" ] && return 0
    step draw "$python" - "$work" << 'END' || return 1
import sys
from pathlib import Path

import cv2

from unetrt.training.synthetic import draw_pair, write_dataset

work, drawn, linked = Path(sys.argv[1]), 32, 256
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

# The reference net, every row. At the largest size the reference loop makes every mask from a
# photograph, one by one: it gets fewer of them.
bench() {
    if ! prepare_bench; then
        say "bench: skipped, no trained network: see train-drawn.txt"
        return 0
    fi
    timeline
    local size scale limit skip=${SKIP:-} patience=${ROW_SECONDS:-120}
    if [ "${COMPILE:-}" = 1 ]; then
        patience=${ROW_SECONDS:-240}
    else
        skip=${skip:+$skip,}torch-compile
    fi
    # Each has a stage's time of its own: the largest, cut, would leave none to the others for ever.
    for size in $sizes; do
        begin_stage
        # One that was cut leaves a report, too, which says so.
        if grep -qs '"interrupted": false' "$results/$size"/*.json; then
            say "bench-$size: done before"
            continue
        fi
        # Of the cut one: README's tables are made of all there are.
        rm -f "$results/$size"/bench_* "$results/$size"/unfinished.*
        scale=1 limit=256
        [ "$size" = 640x959 ] && scale=0.5 limit=32
        step "bench-$size" "$python" -m unetrt.cli bench "$work/drawn/best.pth" \
            --images "$work/$size/imgs" --device cuda --scale $scale --seconds 0.5 --repeats 3 \
            --calibration "$work/drawn-200/imgs" --batch 8 --limit $limit \
            --row-timeout $patience ${skip:+--skip "$skip"} --report "$results/$size"
    done
}

require_cuda
begin_stage
case $stage in
    install) install || exit 1 ;;
    tests) run_tests ;;
    train) train ;;
    prepare) prepare_bench || failed=1 ;;
    bench) bench ;;
    all)
        begin_stage install; install || exit 1
        begin_stage tests; run_tests
        begin_stage bench; bench
        begin_stage train; train
        ;;
    *) echo "no stage $stage: install, tests, train, prepare, bench or all" >&2; exit 2 ;;
esac
say "results in $results"
exit $failed
