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

# generation_of TYPE: v5e, v5p or v6e.
generation_of() {
  case "$1" in
  v5litepod-*) echo v5e ;;
  v5p-*) echo v5p ;;
  v6e-*) echo v6e ;;
  *)
    echo "expected a type like v5litepod-8, v5p-8 or v6e-8, found $1" >&2
    return 2
    ;;
  esac
}

# has_hosts TYPE: whether a slice has more than one. Each has eight chips at most, in v5p four, where
# a type counts cores, of which a chip has two.
has_hosts() {
  [ "${1##*-}" -gt 8 ]
}
