#!/usr/bin/env bash
# Makes a TPU VM, installs the project there and runs it:
#   launch/tpu_vm.sh [--dry-run] [--existing] [--spot] NAME ZONE TYPE --config=... --workdir=...
# TYPE: v5litepod-8, v5p-128, v6e-16 ... Of a slice with several hosts, all run the command, and join
# up; their workdir must be one that all see. --existing: the VM is there. It is not deleted:
#   gcloud compute tpus tpu-vm delete NAME --zone=ZONE
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/dry_run.sh
. "$here/dry_run.sh"
existing='' options=()
while [[ "${1:-}" == --* ]]; do
  case "$1" in
  --dry-run) DRY_RUN=1 ;;
  --existing) existing=1 ;;
  --spot) options+=(--spot) ;;
  *) echo "$0: unknown flag $1" >&2 && exit 2 ;;
  esac
  shift
done
[ $# -ge 4 ] || { sed -n '2,6s/^# //p' "$0" >&2 && exit 2; }
name=$1 zone=$2 type=$3
shift 3
generation=$(generation_of "$type")
arguments=("$@")
if has_hosts "$type"; then arguments+=(--coordinator=auto); fi
case "$generation" in
v5e) version=v2-alpha-tpuv5-lite ;;
v5p) version=v2-alpha-tpuv5 ;;
v6e) version=v2-alpha-tpuv6e ;;
esac
tpu=(gcloud compute tpus tpu-vm)
if [ -z "$existing" ]; then
  run "${tpu[@]}" create "$name" "--zone=$zone" "--accelerator-type=$type" \
    "--version=$version" "${options[@]}"
fi
run "${tpu[@]}" ssh "$name" "--zone=$zone" --worker=all --command='mkdir -p cai_jax'
for part in cai_jax configs constitutions launch pyproject.toml README.md LICENSE; do
  run "${tpu[@]}" scp --recurse "$part" "$name:cai_jax/" "--zone=$zone" --worker=all
done
run "${tpu[@]}" ssh "$name" "--zone=$zone" --worker=all \
  --command="cd cai_jax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
run "${tpu[@]}" ssh "$name" "--zone=$zone" --worker=all \
  --command="cd cai_jax && launch/start.sh $generation $(printf '%q ' "${arguments[@]}")"
