#!/usr/bin/env bash
# One job for each number of a range, by any script here; {} in an argument stands for the number:
#   launch/sweep.sh [--dry-run] 0-4 launch/xpk.sh CLUSTER run-{} v6e-8 IMAGE --config=... \
#     --config.seed={} --workdir=/runs/{}
# (Under Slurm: sbatch --array=0-4 launch/slurm.sbatch ...) It stops at the first that fails.
set -euo pipefail
passed=()
if [ "${1:-}" = --dry-run ]; then
  passed=(--dry-run)
  shift
fi
[ $# -ge 3 ] || { sed -n '2,5s/^# //p' "$0" >&2 && exit 2; }
range=$1 script=$2
shift 2
if [[ ! "$range" =~ ^([0-9]+)-([0-9]+)$ ]] || [[ "$*" != *{}* ]]; then
  echo "$0: expected a range like 0-4, and {} among the arguments, found $range $*" >&2
  exit 2
fi
for ((number = BASH_REMATCH[1]; number <= BASH_REMATCH[2]; number++)); do
  "$script" "${passed[@]}" "${@//\{\}/$number}"
done
