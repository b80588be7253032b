#!/usr/bin/env bash
# The tests, against the wheel in an environment: test_wheel.sh ENV [options of pytest].
# They run in a copy of the checkout without the package, so that `snakecls` can only be the wheel's.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$1/bin" && pwd)/python
shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar -C "$root" -c --exclude=./snakecls --exclude=./.git --exclude='./.venv*' --exclude=./runs . | tar -x -C "$copy"
export SNAKECLS_REAL_DATA="${SNAKECLS_REAL_DATA:-$root/../shared/data}" OMP_NUM_THREADS=1 NO_ALBUMENTATIONS_UPDATE=1
cd "$copy"
"$python" - <<'PY'
from importlib.metadata import version
from importlib.util import find_spec
assert find_spec("nbdev") is None, "nbdev is not for users"
assert int(version("fastcore").split(".")[0]) >= 2, version("fastcore")
assert "site-packages" in find_spec("snakecls").origin, find_spec("snakecls").origin
print("snakecls", version("snakecls"), "fastai", version("fastai"), "fastcore", version("fastcore"))
PY
"$python" -m pytest tests -n 2 --dist loadfile --durations=30 "$@"
