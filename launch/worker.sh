#!/usr/bin/env bash
# What launch/tpu_pod.sh has each worker of a TPU slice do, in the checkout that it copied there.
#
#   ./launch/worker.sh install [BUCKET]   makes .venv for TPUs and gs:// paths; mounts a bucket at bucket/
#   ./launch/worker.sh start ARGUMENT...  starts inti_jax.main, which outlives the connection
#   ./launch/worker.sh status             prints "status: running", or with what it ended
#   ./launch/worker.sh log                prints what it said, the host's name before each line
set -euo pipefail
cd "$(dirname "$0")/.."

install() {
  local key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
  if ! command -v python3.11 >/dev/null; then
    sudo apt-get update -qq
    sudo apt-get install -y -qq python3.11 python3.11-venv
  fi
  [ -x .venv/bin/python ] || python3.11 -m venv .venv
  .venv/bin/python -m pip install --quiet --requirement requirements.txt
  .venv/bin/python -m pip install --quiet --constraint requirements.txt 'jax[tpu]' gcsfs
  [ -n "${1:-}" ] || return 0
  if ! command -v gcsfuse >/dev/null; then # by its own instructions
    curl -fsS "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -y -qq gcsfuse
  fi
  mkdir -p bucket
  mountpoint -q bucket || gcsfuse --implicit-dirs "$1" bucket
}

start() {
  rm -f run.status
  # shellcheck disable=SC2016
  nohup setsid bash -c '.venv/bin/python -m inti_jax.main "$@"; echo $? > run.partial; mv run.partial run.status' \
    run "$@" >> run.log 2>&1 < /dev/null &
}

status() {
  if [ -f run.status ]; then echo "status: $(cat run.status)"; else echo "status: running"; fi
}

log() { sed "s/^/[$(hostname)] /" run.log; }

case ${1:-} in
  install|start|status|log) "$@" ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d' >&2; exit 2 ;;
esac
