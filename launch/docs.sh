#!/usr/bin/env bash
# Builds the documentation site into site/, with warnings as errors; with `serve`, shows it while pages change.
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
