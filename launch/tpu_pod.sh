#!/usr/bin/env bash
# A run on Cloud TPU VMs: gets slices by a queued resource, installs this checkout on them, runs, collects logs.
#
#   ./launch/tpu_pod.sh COMMAND NAME --zone ZONE [options] [-- <arguments of inti_jax.main>]
#
#   train    all of the following; what was preempted is created again and the run goes on from its checkpoint
#   create   requests the slices, unless they are there, and waits for them
#   install  copies the checkout's last commit to inti_jax/ on every worker and installs it
#   run      starts inti_jax.main there on every worker, and returns
#   wait     waits for it to end; exit status 0: done, 143: preempted or stopped after saving, else it failed
#   logs     appends the log of every worker to NAME.log
#   delete   deletes the slices
#
#   --zone ZONE      where (always)             --project PROJECT  whose (default: gcloud's own)
#   --type TYPE      the slice: v5litepod-16, v5p-32, v6e-16, ... (create and train)
#   --slices N       how many of them, connected by the data centre's network (default: 1)
#   --runtime R      the TPU software version (default: the one that belongs to TYPE)
#   --spot           slices that may be taken away at any time, at a lower price
#   --bucket BUCKET  mount a bucket at inti_jax/bucket on every worker; gs:// paths need no mount
#   --keep           train: leave the slices there at the end
#   --dry-run        print what would be run, and run nothing; needs no gcloud
#
#   ./launch/tpu_pod.sh train k400 --zone us-west4-a --type v5litepod-16 --spot -- \
#     --config configs/k400_vit_b16.py:method=aim --workdir gs://my-bucket/runs/k400 \
#     --config.data.data_dir=gs://my-bucket/data
set -euo pipefail

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'; }
fail() { echo "error: $1" >&2; exit 2; }
say() { echo "$(date +%H:%M:%S) $1" >&2; }

case ${1:-} in -h|--help) usage; exit ;; esac
[ $# -ge 2 ] || { usage >&2; exit 2; }
command=$1 name=$2
shift 2
case $command in
  train|create|install|run|wait|logs|delete) ;;
  *) fail "unknown command $command: it should be train, create, install, run, wait, logs or delete" ;;
esac
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "NAME should have lower-case letters, digits and dashes, not '$name'"

zone='' project='' type='' slices=1 runtime='' spot='' bucket='' keep='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --zone|--project|--type|--slices|--runtime|--bucket)
      case ${2:-} in ''|--*) fail "$1 takes a value" ;; esac
      printf -v "${1#--}" %s "$2"
      shift 2 ;;
    --spot) spot=yes; shift ;;
    --keep) keep=yes; shift ;;
    --dry-run) dry=yes; shift ;;
    --) shift; break ;;
    *) fail "unknown argument $1; put the arguments of inti_jax.main after --" ;;
  esac
done
[ -n "$zone" ] || fail "--zone is missing"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices should be a positive number, not '$slices'"
bucket=${bucket#gs://}
case $command in
  create|train)
    [ -n "$type" ] || fail "--type is missing: give the slice to create, such as v5litepod-16"
    if [ -z "$runtime" ]; then
      case $type in
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v2-*|v3-*|v4-*) runtime=tpu-ubuntu2204-base ;;
        *) fail "--runtime is missing: the TPU software version for $type is unknown, so give it" ;;
      esac
    fi ;;
esac
case $command in
  run|train) [ $# -gt 0 ] || fail "give the arguments of inti_jax.main after --" ;;
  *) [ $# -eq 0 ] || fail "$command takes nothing after --" ;;
esac
if [ "$command" = train ] && [ -n "$spot" ] && [ -z "$bucket" ]; then
  case " $* " in
    *" --workdir gs://"*|*" --workdir=gs://"*) ;;
    *) fail "--spot needs --workdir gs://BUCKET/..., or --bucket: a preempted slice loses its disks, and the checkpoints on them" ;;
  esac
fi
[ -n "$dry" ] || command -v gcloud >/dev/null ||
  fail "gcloud is not on the PATH: install the Google Cloud CLI, or add --dry-run"
cd "$(dirname "$0")/.."

where=(--zone "$zone")
[ -z "$project" ] || where+=(--project "$project")
nodes=("$name")
[ "$slices" -eq 1 ] || mapfile -t nodes < <(seq -f "$name-%.0f" 0 $((slices - 1)))

# do_it ARGUMENT...: runs the command, or prints it.
do_it() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# on_workers COMMAND: runs it on every worker of every slice at once; fails if it fails anywhere.
on_workers() {
  local node pids=() status=0
  for node in "${nodes[@]}"; do
    if [ -n "$dry" ]; then
      do_it gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command "$1"
    else
      gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command "$1" &
      pids+=($!)
    fi
  done
  for node in "${pids[@]+"${pids[@]}"}"; do wait "$node" || status=$?; done
  return "$status"
}

# state: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ..., or nothing where there is no such resource.
state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}

create() {
  local found='' request
  [ -n "$dry" ] || found=$(state)
  case $found in
    FAILED|SUSPENDED|SUSPENDING) delete || return; found='' ;;
  esac
  if [ -z "$found" ]; then
    request=(gcloud compute tpus queued-resources create "$name" "${where[@]}"
      --accelerator-type "$type" --runtime-version "$runtime")
    if [ "$slices" -eq 1 ]; then
      request+=(--node-id "$name")
    else
      request+=(--node-count "$slices" --node-prefix "$name")
    fi
    [ -z "$spot" ] || request+=(--spot)
    do_it "${request[@]}" || return
  fi
  [ -z "$dry" ] || return 0
  while found=$(state); [ "$found" != ACTIVE ]; do
    case $found in
      FAILED|SUSPENDED)
        echo "error: $name is $found: gcloud compute tpus queued-resources describe $name ${where[*]}" >&2
        return 1 ;;
    esac
    say "$name is ${found:-not listed yet}"
    sleep 30
  done
}

install() {
  local archive node
  archive=$(git rev-parse --short HEAD) || return
  [ -z "$(git status --porcelain)" ] || say "copying commit $archive without the uncommitted changes"
  archive="/tmp/inti_jax-$archive.tar.gz"
  do_it git archive --format=tar.gz --output "$archive" HEAD || return
  for node in "${nodes[@]}"; do
    do_it gcloud compute tpus tpu-vm scp "$archive" "$node:inti_jax.tar.gz" "${where[@]}" --worker=all || return
  done
  on_workers "mkdir -p inti_jax && tar -xzf inti_jax.tar.gz -C inti_jax && inti_jax/launch/worker.sh install $bucket"
}

run() {
  local arguments
  printf -v arguments ' %q' "$@"
  on_workers "inti_jax/launch/worker.sh start$arguments"
}

wait_for_it() {
  local found
  while true; do
    if [ -z "$dry" ] && [ "$(state)" != ACTIVE ]; then
      say "$name was preempted"
      return 143
    fi
    # A connection may fail while all is well: then the next round tells.
    if found=$(on_workers "inti_jax/launch/worker.sh status"); then
      if [ -n "$dry" ]; then
        echo "$found"
        return
      fi
      case $found in
        *"status: 143"*) return 143 ;;
        *"status: "[1-9]*) say "the run failed: ./launch/tpu_pod.sh logs $name --zone $zone"; return 1 ;;
        *"status: running"*) ;;
        *"status: 0"*) return 0 ;;
      esac
    fi
    sleep 30
  done
}

logs() {
  if [ -n "$dry" ]; then
    on_workers "inti_jax/launch/worker.sh log"
  else
    on_workers "inti_jax/launch/worker.sh log" >> "$name.log"
    say "the workers' logs are in $name.log"
  fi
}

delete() { do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

train() {
  local status
  while true; do
    status=0
    create || return
    if install && run "$@"; then
      wait_for_it || status=$?
    else
      say "setup failed"
      status=1
      [ "$(state)" = ACTIVE ] || status=143
    fi
    if [ "$status" -ne 143 ]; then
      logs || true
      [ -n "$keep" ] || delete
      return "$status"
    fi
    delete || true
  done
}

case $command in
  wait) wait_for_it ;;
  run|train) "$command" "$@" ;;
  *) "$command" ;;
esac
