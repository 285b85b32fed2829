#!/usr/bin/env bash
# run.sh COMMAND...: sets up what is missing, then runs the command in the project's environment.
# "python" is the environment's; the working directory stays the caller's.
NIAF_STEP=${NIAF_STEP:-run}
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
"$NIAF_ROOT/scripts/setup.sh"
. "$NIAF_ROOT/scripts/env.sh"
exec "$@"
