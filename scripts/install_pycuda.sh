#!/usr/bin/env bash
# Build and install pycuda with the python given, where the CUDA toolkit is found.
# pycuda has no wheels; it links against libcuda.so.1, which only a driver brings: an empty library
# of that name serves to link, and the tests bring a driver of their own.
#
#   scripts/install_pycuda.sh [--required] PYTHON
#
# Where it cannot be built it says why, and fails only if it is --required: the tests of the slot
# are skipped then.
set -euo pipefail
status=0
if [ "$1" = --required ]; then
    status=1
    shift
fi
python=$(command -v "$1")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # not resolved: a venv is its link
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints.txt
cuda=${CUDA_ROOT:-/usr/local/cuda}

if "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('pycuda') is None)"; then
    exit 0
fi
skip() {
    echo "pycuda: $*; the tests of the CUDA slot will be skipped" >&2
    exit $status
}
if [ ! -x "$cuda/bin/nvcc" ] || ! command -v g++ > /dev/null; then
    skip "no CUDA toolkit in $cuda or no g++"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# PYCUDA_FROM: a folder that holds the sdist, and pybind11's wheel or not, where there is no index.
fetch() {
    if [ -n "${PYCUDA_FROM:-}" ]; then
        cp "$PYCUDA_FROM"/pycuda-*.tar.gz "$work"
    else
        "$python" -m pip install --quiet -c "$constraints" \
            setuptools numpy pytools platformdirs mako \
            && "$python" -m pip download --quiet --no-deps --no-binary :all: \
                --no-build-isolation -c "$constraints" -d "$work" pycuda
    fi && tar xf "$work"/pycuda-*.tar.gz -C "$work"
}
fetch > "$work/log" 2>&1 || { tail -n 20 "$work/log"; skip "its sources are not to be had"; }

# setuptools compiles one source at a time: minutes. pybind11 brings what makes it take all cores;
# the environment has no use for it afterwards. Without it pycuda is built all the same.
export PYTHONPATH=$work/tools${PYTHONPATH:+:$PYTHONPATH}
parallel() {
    local from=() try=("$python" -c "import pybind11.setup_helpers")
    "${try[@]}" && return
    [ -z "${PYCUDA_FROM:-}" ] || from=(--no-index --find-links "$PYCUDA_FROM")
    "$python" -m pip install --quiet --no-deps -c "$constraints" --target "$work/tools" \
        "${from[@]}" pybind11 && "${try[@]}"
}
cores=all
parallel > "$work/log" 2>&1 || { cores=one; echo "pycuda: no pybind11: compiled on one core"; }

build() {
    mkdir "$work/link" && cd "$work"/pycuda-*/ || return
    echo "int unetrt_nothing;" \
        | gcc -x c -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$work/link/libcuda.so" - || return
    cat > siteconf.py << END
CUDA_ROOT = "$cuda"
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = ["$work/link"]
CUDADRV_LIBNAME = ["cuda"]
END
    # setup.py runs that file before it compiles, and refuses names in it that are not its own.
    [ $cores = one ] || cat >> siteconf.py << 'END'
import os, pybind11.setup_helpers as helpers
helpers.ParallelCompile(default=len(os.sched_getaffinity(0))).install()
del os, helpers
END
    # Where the linker drops libraries that give no symbol, as on Ubuntu, it would drop that one.
    LDFLAGS="${LDFLAGS:-} -Wl,--no-as-needed" PATH="$cuda/bin:$PATH" \
        "$python" -m pip install --quiet --no-deps --no-build-isolation .
}
build > "$work/log" 2>&1 || { tail -n 20 "$work/log"; skip "it does not compile"; }
echo "pycuda: built against $cuda"
