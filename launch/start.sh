#!/usr/bin/env bash
# On the machine itself: launch/start.sh GENERATION --config=... --workdir=...
# The same command again goes on where the last one ended.
set -euo pipefail
cd "$(dirname "$0")/.."
generation=${1:?launch/start.sh: expected GENERATION and the arguments of cai_jax.run}
shift
# shellcheck source=launch/env.sh
. launch/env.sh "$generation"
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m cai_jax.run "$@"
