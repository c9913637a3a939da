# shellcheck shell=bash
# Sourced by the launch scripts: makes .venv hold exactly what a lock file names.

# ensure_venv LOCK [OPTION...]: creates .venv or brings it up to date with LOCK, and activates it. Options go to pip.
ensure_venv() {
  local lock=$1 python stamp satisfied
  shift
  python=$(command -v python3.11 || command -v python3 || true)
  if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: python3.11 is not on the PATH: install Python 3.11 or newer with venv" >&2
    return 1
  fi
  # The venv is current if it was last installed from these very files, by this Python.
  stamp=$("$python" -c 'import hashlib, sys; print(sys.version.split()[0], *(
      hashlib.sha256(open(path, "rb").read()).hexdigest() for path in sys.argv[1:]))' \
    requirements.txt requirements-dev.txt)
  if [ -x .venv/bin/python ] && [ "$(cat ".venv/$lock.stamp" 2>/dev/null)" = "$stamp" ]; then
    echo "using .venv, which is up to date with $lock"
  else
    echo "installing $lock into .venv"
    "$python" -m venv .venv
    # The locks are complete, and no resolver takes jax2onnx beside our Orbax: see lock.sh.
    .venv/bin/python -m pip install --quiet --no-deps "$@" --requirement "$lock"
    rm -f .venv/*.stamp
    # What the tests need holds all that a run needs, in the same versions.
    satisfied="requirements.txt $lock"
    for lock in $satisfied; do echo "$stamp" > ".venv/$lock.stamp"; done
  fi
  # shellcheck disable=SC1091
  . .venv/bin/activate
}

# ensure_chromium: in continuous integration, installs the browser in which the tests open pages. Elsewhere, and where
# it cannot be had, these tests are skipped.
ensure_chromium() {
  if [ -z "${CI:-}" ] || [ "$(id -u)" != 0 ] || command -v chromium > /dev/null; then return; fi
  echo "installing chromium"
  if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } > /dev/null; then
    echo "chromium could not be installed: the tests that open pages are skipped" >&2
  fi
}
