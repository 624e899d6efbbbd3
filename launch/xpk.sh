#!/usr/bin/env bash
# Runs an image of launch/Dockerfile on a GKE cluster through xpk:
#   launch/xpk.sh [--dry-run] CLUSTER NAME TYPE IMAGE --config=... --workdir=...
# TYPE as in launch/tpu_vm.sh. The workdir must outlive the pods, and all of them see it: a mounted
# bucket or disk. Hosts of a slice join up by themselves.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/dry_run.sh
. "$here/dry_run.sh"
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
[ $# -ge 5 ] || { sed -n '2,5s/^# //p' "$0" >&2 && exit 2; }
cluster=$1 name=$2 type=$3 image=$4
shift 4
generation=$(generation_of "$type")
run xpk workload create "--cluster=$cluster" "--workload=$name" "--tpu-type=$type" --num-slices=1 \
  "--docker-image=$image" --max-restarts=10 \
  "--command=launch/start.sh $generation $(printf '%q ' "$@")"
