# shellcheck shell=bash
# Sourced by the scripts here: run COMMAND... runs it, or with --dry-run prints it, quoted.
DRY_RUN=${DRY_RUN:-}
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# generation_of TYPE: v5e, v5p or v6e; refuses slices of more than one host.
generation_of() {
  local size=${1##*-} generation most
  case "$1" in
  v5litepod-*) generation=v5e most=8 ;;
  v5p-*) generation=v5p most=8 ;; # counted in cores: four chips
  v6e-*) generation=v6e most=8 ;;
  *)
    echo "expected a type like v5litepod-8, v5p-8 or v6e-8, found $1" >&2
    return 2
    ;;
  esac
  if [ "$size" -gt "$most" ]; then
    echo "$1 has more than one host, and cai_jax.run does not join hosts yet; take $generation's" \
      "largest slice of one host, of size $most" >&2
    return 2
  fi
  echo "$generation"
}
