#!/usr/bin/env bash
# clean.sh [--all]: removes what is generated; with --all the environment too. Data sets and training runs stay.
NIAF_STEP=clean
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
rm -rf "$NIAF_WS"/{build,install,log} "$NIAF_WS"/.niaf_environment "$NIAF_WS"/.setup.lock \
    "$NIAF_ROOT"/out "$NIAF_ROOT"/.{pytest,mypy,ruff}_cache "$NIAF_ROOT"/.hypothesis
find "$NIAF_ROOT" \( -path "$NIAF_ROOT/.venv" -o -path "$NIAF_ROOT/.git" \) -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -print0 |
    xargs -0 -r rm -rf
if [ "${1:-}" = --all ]; then
    # Only what setup.sh made.
    if [ -f "$NIAF_VENV/.niaf_installed" ] || [ "$NIAF_VENV" = "$NIAF_ROOT/.venv" ]; then rm -rf "$NIAF_VENV"; fi
    if [ "$NIAF_SOURCE" != "$NIAF_ROOT" ]; then rm -rf "$(dirname -- "$NIAF_SOURCE")"; fi
fi
say "done"
