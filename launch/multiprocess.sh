#!/usr/bin/env bash
# One run as several processes on this machine: on simulated devices, to try out what pods do, or on its GPUs.
#
#   ./launch/multiprocess.sh N [--devices D | --gpus G] [--dry-run] -- <arguments of inti_jax.main>
#
# N processes, each with D simulated CPU devices (default: 1) or G of the machine's GPUs. Each line of their
# output begins with the process's number. When one fails, the others get a while to say what they know and
# are stopped; the exit status is that of the first that failed. SIGTERM, SIGINT and SIGHUP are passed on.
set -euo pipefail

usage() { sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
is_count() { case $1 in ''|0*|*[!0-9]*) return 1 ;; esac; }

grace=30 # seconds from the first failure to SIGTERM for the others, and from that to SIGKILL
[ $# -gt 0 ] || usage
count=$1 devices=1 gpus='' dry_run=''
is_count "$count" || { echo "error: N should be a positive number of processes, not '$count'" >&2; usage; }
shift
while [ $# -gt 0 ]; do
  case $1 in
    --devices|--gpus)
      is_count "${2:-}" || { echo "error: $1 takes a positive number" >&2; exit 2; }
      if [ "$1" = --devices ]; then devices=$2; else gpus=$2; fi
      shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    --) shift; break ;;
    *) echo "error: unknown argument $1; put the arguments of inti_jax.main after --" >&2; usage ;;
  esac
done
[ $# -gt 0 ] || { echo "error: give the arguments of inti_jax.main after --" >&2; usage; }

python="$(dirname "$0")/../.venv/bin/python"
[ -x "$python" ] || python=python3
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')

# command_of I ARGUMENT...: sets `command` to process I's.
command_of() {
  local id=$1
  shift
  command=(env)
  if [ -n "$gpus" ]; then
    command+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((id * gpus)) $((id * gpus + gpus - 1)))")
  else
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices")
  fi
  command+=(PYTHONUNBUFFERED=1 "$python" -m inti_jax.main "$@"
    --coordinator_address "localhost:$port" --process_count "$count" --process_id "$id")
}

if [ -n "$dry_run" ]; then
  for ((id = 0; id < count; id++)); do
    command_of "$id" "$@"
    printf '%q ' "${command[@]}"
    echo
  done
  exit
fi

# Without job control a shell's background processes ignore SIGINT.
set -m
pids=()
send() { kill -s "$1" "${pids[@]}" 2>/dev/null || true; }
trap 'send TERM' TERM
trap 'send INT' INT
trap 'send HUP' HUP
trap 'send KILL' EXIT
for ((id = 0; id < count; id++)); do
  command_of "$id" "$@"
  "${command[@]}" > >(sed -u "s/^/[$id] /") 2> >(sed -u "s/^/[$id] /" >&2) &
  pids+=($!)
done

status=0 timer=''
left=("${pids[@]}")
while [ ${#left[@]} -gt 0 ]; do
  finished='' code=0
  wait -n -p finished "${left[@]}" || code=$?
  if [ -z "${finished:-}" ]; then # a signal came, and was passed on: who has ended since then is not told again
    for pid in "${left[@]}"; do
      kill -0 "$pid" 2>/dev/null || { finished=$pid code=0; wait "$pid" || code=$?; break; }
    done
    [ -n "${finished:-}" ] || { sleep 0.2; continue; }
  fi
  still=()
  for pid in "${left[@]}"; do [ "$pid" = "$finished" ] || still+=("$pid"); done
  left=("${still[@]+"${still[@]}"}")
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    (sleep "$grace"; send TERM; sleep "$grace"; send KILL) &
    timer=$!
  fi
done
[ -z "$timer" ] || kill -- "-$timer" 2>/dev/null || true
trap - EXIT
exit "$status"
