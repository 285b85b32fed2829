# source scripts/env.sh (bash): this shell gets Python, ROS 2 and the niaf packages of this repository.
# Needs "make setup" before.

_niaf_flags=$(set +o)
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
if [ ! -f "$NIAF_WS/install/local_setup.bash" ]; then
    eval "$_niaf_flags"
    unset _niaf_flags
    echo "env.sh: the workspace is not built: run make setup first" >&2
    return 1
fi
set +eu
if [ "$NIAF_SYSTEM_ROS" = 0 ]; then
    # Left by another environment with ROS wheels, these would make this one load the other's libraries.
    case ":${LD_LIBRARY_PATH:-}:" in
        *":$NIAF_VENV/lib:"*) ;;
        *) unset _ROS_WHEELS_BOOTSTRAP_COMPLETE ;;
    esac
    . "$NIAF_VENV/setup.bash"
else
    export PATH="$NIAF_VENV/bin:$PATH" VIRTUAL_ENV="$NIAF_VENV"
fi
. "$NIAF_WS/install/local_setup.bash"
# numba notices a change of a compiled function's own file only, not of what it calls: one cache per state of the sources.
export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-$NIAF_WS/build/numba/$(cat "$NIAF_SOURCE"/ros2_ws/src/niaf_{field,impedance,sim}/niaf_*/*.py | sha256sum | cut -c1-12)}"
# niaf_start by its name
case ":$PATH:" in
    *":$NIAF_WS/install/niaf_bringup/lib/niaf_bringup:"*) ;;
    *) export PATH="$NIAF_WS/install/niaf_bringup/lib/niaf_bringup:$PATH" ;;
esac
eval "$_niaf_flags"
unset _niaf_flags
