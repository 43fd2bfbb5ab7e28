#!/usr/bin/env bash
# Build and install pycuda with the python given, where the CUDA toolkit is found.
# pycuda has no wheels; it links against libcuda.so.1, which only a driver brings: an empty library
# of that name serves to link, and the tests bring a driver of their own.
set -euo pipefail
python=$(command -v "$1")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # not resolved: a venv is its link
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints.txt
cuda=${CUDA_ROOT:-/usr/local/cuda}

if "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('pycuda') is None)"; then
    exit 0
fi
if [ ! -x "$cuda/bin/nvcc" ] || ! command -v g++ > /dev/null; then
    echo "pycuda: no CUDA toolkit in $cuda or no g++; the tests of the CUDA slot will be skipped"
    exit 0
fi

[ -z "${PYCUDA_FROM:-}" ] || PYCUDA_FROM=$(cd "$PYCUDA_FROM" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [ -n "${PYCUDA_FROM:-}" ]; then # a folder that holds the sdist, where there is no index
    tar xf "$PYCUDA_FROM"/pycuda-*.tar.gz
else
    "$python" -m pip install --quiet -c "$constraints" setuptools pytools platformdirs mako
    "$python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
        -c "$constraints" pycuda
    tar xf pycuda-*.tar.gz
fi
mkdir link
echo "int unetrt_nothing;" | gcc -x c -shared -fPIC -Wl,-soname,libcuda.so.1 -o link/libcuda.so -
cd pycuda-*/
cat > siteconf.py <<END
CUDA_ROOT = "$cuda"
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = ["$work/link"]
CUDADRV_LIBNAME = ["cuda"]
END
PATH="$cuda/bin:$PATH" "$python" -m pip install --quiet --no-deps --no-build-isolation .
echo "pycuda: built against $cuda"
