# shellcheck shell=bash
# Flags of the compilers, and the only place that has any. Sourced: . launch/env.sh GENERATION
# GENERATION: v5e, v5p, v6e, gpu or cpu. A flag that the installed version does not know ends the
# process, so tests/test_launch.py has each one parsed.
xla=() libtpu=()
case "${1:?launch/env.sh: expected v5e, v5p, v6e, gpu or cpu}" in
v5e | v5p | v6e)
  # fsdp gathers weights before every layer: let the gather of one run beside the sums of another.
  libtpu+=(--xla_enable_async_all_gather=true)
  libtpu+=(--xla_tpu_enable_async_collective_fusion=true)
  libtpu+=(--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true)
  libtpu+=(--xla_tpu_enable_async_collective_fusion_multiple_steps=true)
  libtpu+=(--xla_tpu_overlap_compute_collective_tc=true)
  ;;
gpu)
  # The same: order instructions so that collectives run beside arithmetic.
  xla+=(--xla_gpu_enable_latency_hiding_scheduler=true)
  # The scan over layers: two buffers, so that a layer's weights come while the last one computes.
  xla+=(--xla_gpu_enable_while_loop_double_buffering=true)
  ;;
cpu) ;;
*)
  echo "launch/env.sh: expected v5e, v5p, v6e, gpu or cpu, found $1" >&2
  return 2
  ;;
esac
case "$1" in
v6e) libtpu+=(--xla_tpu_scoped_vmem_limit_kib=98304) ;; # 128 MiB of VMEM: room for larger fusions
esac
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }${xla[*]}"
export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:+$LIBTPU_INIT_ARGS }${libtpu[*]}"
