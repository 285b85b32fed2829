# Sourced by the other scripts (bash). Sets:
#   NIAF_ROOT     the repository
#   NIAF_SOURCE   the repository under a name without a space (the same, or a link to it)
#   NIAF_VENV     the virtual environment
#   NIAF_WS       where colcon's build, install and log folders are
#   NIAF_SYSTEM_ROS  1 when a ROS 2 installed on the system is sourced, else 0
#
# A path with a space cannot stand in the "#!" line of a program, and CMake's message generators
# trip over it, so for such a repository all that is generated goes to a folder without one.

set -euo pipefail

NIAF_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '[%s] %s\n' "${NIAF_STEP:-niaf}" "$*"; }
die() {
    printf '[%s] error: %s\n' "${NIAF_STEP:-niaf}" "$1" >&2
    shift
    for line in "$@"; do printf '        %s\n' "$line" >&2; done
    exit 1
}

has_space() { case $1 in *[[:space:]]*) return 0 ;; *) return 1 ;; esac; }

# A folder without a space in its path, owned by this user, for what is generated.
_niaf_cache() {
    local base
    if [ -n "${XDG_CACHE_HOME:-}" ] && ! has_space "$XDG_CACHE_HOME"; then
        base=$XDG_CACHE_HOME/niaf
    elif [ -n "${HOME:-}" ] && ! has_space "$HOME"; then
        base=$HOME/.cache/niaf
    else
        base=/var/tmp/niaf-$(id -u)
    fi
    mkdir -p -m 700 "$base"
    [ -O "$base" ] || die "$base belongs to another user" "Set XDG_CACHE_HOME to a folder of yours whose path has no space."
    printf '%s' "$base/$(printf '%s' "$NIAF_ROOT" | sha256sum | cut -c1-12)"
}

case $NIAF_ROOT in
    *:*) die "the path $NIAF_ROOT has a colon, which PATH cannot hold" "Move the repository to another folder." ;;
esac
if has_space "$NIAF_ROOT"; then
    _niaf_generated=$(_niaf_cache)
    mkdir -p "$_niaf_generated"
    ln -sfn "$NIAF_ROOT" "$_niaf_generated/source"
    NIAF_SOURCE=$_niaf_generated/source
    : "${NIAF_VENV:=$_niaf_generated/venv}"
    : "${NIAF_WS:=$_niaf_generated/ros2_ws}"
else
    NIAF_SOURCE=$NIAF_ROOT
    : "${NIAF_VENV:=$NIAF_ROOT/.venv}"
    : "${NIAF_WS:=$NIAF_ROOT/ros2_ws}"
fi

# ROS_DISTRO alone does not tell: the wheels' setup file sets it too, and marks itself with NIAF_ROS.
NIAF_SYSTEM_ROS=0
if [ "${NIAF_ROS:-}" = system ]; then
    NIAF_SYSTEM_ROS=1
elif [ -n "${ROS_DISTRO:-}" ] && [ "${NIAF_ROS:-}" != wheels ] && command -v ros2 >/dev/null; then
    NIAF_SYSTEM_ROS=1
fi

# Home is where ROS writes its log files; without one, beside the results.
if [ -z "${HOME:-}" ] || [ ! -w "${HOME:-/}" ]; then
    export ROS_LOG_DIR="${ROS_LOG_DIR:-$NIAF_ROOT/out/ros_log}"
fi

export NIAF_ROOT NIAF_SOURCE NIAF_VENV NIAF_WS NIAF_SYSTEM_ROS
