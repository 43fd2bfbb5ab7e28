#!/usr/bin/env bash
# Unpack NVIDIA's Triton server from the wheel of PyTriton beside the environment of the python
# given, for the tests of `unetrt triton`. The wheel holds the server and its Python backend only.
# That backend reads arrays of numpy 1 alone: its numpy lies beside it, not in the environment.
set -euo pipefail
python=$(command -v "$1")
target=$(dirname "$(dirname "$python")")/tritonserver
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

if [ -x "$target/pytriton/tritonserver/backends/python/triton_python_backend_stub" ]; then
    exit 0
fi
case $version in
    3.11 | 3.12) ;; # the backend has a part for 3.13 too, numpy 1 has no wheel for it
    *)
        echo "tritonserver: its Python backend and numpy 1 are for Python 3.11 and 3.12, this is" \
            "$version; its tests are skipped"
        exit 0
        ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() {
    "$python" -m pip download --quiet --no-deps --only-binary=:all: -d "$work" \
        nvidia-pytriton==0.7.0 \
        && "$python" -m pip install --quiet --no-deps --only-binary=:all: \
            --target "$work/tree/python" numpy==1.26.4
}
if ! fetch > "$work/log" 2>&1; then
    tail -n 10 "$work/log"
    echo "tritonserver: not to be had here (its wheel is for Linux x86-64 with glibc 2.35 or newer);" \
        "its tests are skipped"
    exit 0
fi
"$python" -m zipfile -e "$work"/nvidia_pytriton-*.whl "$work/tree"
server=$work/tree/pytriton/tritonserver
cp "$server/python_backend_stubs/$version/triton_python_backend_stub" "$server/backends/python/"
chmod +x "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub"
rm -rf "$target"
mv "$work/tree" "$target"
echo "tritonserver: in $target"
