#!/usr/bin/env bash
# Builds the documentation into site/ as the pages of this version, with warnings as errors; with `serve`, shows them
# while they change. To look at site/: python -m http.server --directory site
#
#   ./launch/docs.sh [serve]
set -euo pipefail
cd "$(dirname "$0")/.."
case $* in
  '') command=(build --clean --strict) ;;
  serve) command=(serve) ;;
  *) echo "error: give nothing or serve, not '$*'" >&2; exit 2 ;;
esac
. launch/common.sh
ensure_venv requirements-dev.txt

export PYTHONPATH=.
python launch/notebook.py
python launch/reference.py
zensical "${command[@]}"
[ "${command[0]}" = serve ] || python launch/versions.py
