#!/usr/bin/env bash
# Queues for a TPU VM, waits for it, and runs there:
#   launch/queued.sh [--dry-run] [--spot] NAME ZONE TYPE --config=... --workdir=...
# A spot VM that is taken away: the same command, with another NAME, and a workdir that outlives it.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/dry_run.sh
. "$here/dry_run.sh"
options=() passed=(--existing)
while [[ "${1:-}" == --* ]]; do
  case "$1" in
  --dry-run) DRY_RUN=1 passed+=(--dry-run) ;;
  --spot) options+=(--spot) ;;
  *) echo "$0: unknown flag $1" >&2 && exit 2 ;;
  esac
  shift
done
[ $# -ge 4 ] || { sed -n '2,4s/^# //p' "$0" >&2 && exit 2; }
name=$1 zone=$2 type=$3
generation=$(generation_of "$type")
case "$generation" in
v5e) version=v2-alpha-tpuv5-lite ;;
v5p) version=v2-alpha-tpuv5 ;;
v6e) version=v2-alpha-tpuv6e ;;
esac
queue=(gcloud compute tpus queued-resources)
run "${queue[@]}" create "$name" "--node-id=$name" "--zone=$zone" "--accelerator-type=$type" \
  "--runtime-version=$version" "${options[@]}"
state=(run "${queue[@]}" describe "$name" "--zone=$zone" '--format=value(state.state)')
if [ -n "$DRY_RUN" ]; then
  "${state[@]}"
else
  until found=$("${state[@]}") && [ "$found" = ACTIVE ]; do
    case "$found" in
    FAILED | SUSPENDED) echo "$0: the request is $found" >&2 && exit 1 ;;
    esac
    sleep 30
  done
fi
"$here/tpu_vm.sh" "${passed[@]}" "$@"
