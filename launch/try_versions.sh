#!/usr/bin/env bash
# Tries another Python or lock: installs the lock into a directory of its own and runs the quick part of the tests.
#
#   ./launch/try_versions.sh PYTHON LOCK [PYTEST ARGUMENTS...]
#   ./launch/try_versions.sh python3.13 requirements-newest.txt
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "error: give a Python and a lock, such as python3.13 requirements-newest.txt" >&2; exit 2; }
python=$1 lock=$2
shift 2
command -v "$python" > /dev/null || { echo "error: $python is not on the PATH: install it" >&2; exit 1; }
[ -f "$lock" ] || { echo "error: there is no lock $lock here" >&2; exit 1; }

[ $# -gt 0 ] || set -- tests/api_test.py tests/config tests/data tests/models tests/export tests/pretrained tests/launch_test.py
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv "$environment"
"$environment/bin/pip" install --quiet --no-deps --requirement "$lock"
PATH="$environment/bin:$PATH" pytest --numprocesses "$(nproc)" --dist worksteal "$@"
