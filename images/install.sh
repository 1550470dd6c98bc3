#!/bin/sh
# install.sh VENV REQUIREMENTS: a virtual environment with what a run needs and nothing else.
#
# Every package is checked against the hash in REQUIREMENTS, which is whole: what packages themselves ask for is not looked
# at, because lmms-eval asks for more than it needs (pyproject.toml). No pip, tests or caches stay; of kfp there is only the package
# itself (/build/kfp.txt), which is all that a task uses. Byte code names its source by a hash instead of a time stamp, so
# that the same packages give the same files in every build.
# BESIDE: an environment whose packages count as installed. EXTRA_INDEX: a second package index. VARIANT: cpu or cuda,
# whose wheels in images/wheels are preferred to the index.
set -eu
venv=$1
requirements=$2
site=$venv/lib/python3.11/site-packages
python3 -m venv --without-pip "$venv"
[ -d /build/pip ] || python3 -m venv /build/pip
[ -z "${BESIDE:-}" ] || echo "$BESIDE/lib/python3.11/site-packages" > "$site/beside.pth"
install() {
    /build/pip/bin/pip --python "$venv/bin/python" install --quiet --no-cache-dir --no-compile \
        --disable-pip-version-check --root-user-action=ignore \
        ${VARIANT:+--find-links "/build/wheels/$VARIANT"} ${EXTRA_INDEX:+--extra-index-url "$EXTRA_INDEX"} "$@"
}
if [ "${VARIANT:-}" = cpu ]; then
    # The lock has the hashes of the index's build, which is for CUDA. The CPU build has others, and none of the libraries.
    install --no-deps "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$requirements")"
    awk '/^[a-z0-9]/ { kept = !/^(torch==|triton==|nvidia-|cuda-)/ } kept' "$requirements" > /build/without_cuda.txt
    requirements=/build/without_cuda.txt
fi
install --require-hashes --no-deps -r "$requirements"
install --require-hashes --no-deps -r /build/kfp.txt
cd "$site"
find . -depth -type d \( -name tests -o -name test -o -name include \) -exec rm -rf {} +
find . -name direct_url.json -delete
# Large parts of packages that no stage uses: sources and build tools, Arrow's network and query protocols and its own S3
# client (fsspec's is used), the same library under three names, AWS beside its storage.
find . -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.pyx' -o -name '*.pxd' \) -delete
if [ -d torch/bin ]; then
    find torch/bin -type f ! -name torch_shm_manager -delete
fi
rm -f pyarrow/*flight* pyarrow/libarrow_s3* pyarrow/_s3fs* pyarrow/_pyarrow_cpp_tests* \
    pyarrow/libarrow_python*.so pyarrow/libarrow_python*.so.*.*.*
if [ -d botocore/data ]; then
    find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name 'sso*' ! -name sts -exec rm -rf {} +
fi
# Some packages carry files that are no Python 3.11; they are not used.
python3 -m compileall -q --invalidation-mode unchecked-hash . > /dev/null || true
