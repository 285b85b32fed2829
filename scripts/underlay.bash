# Makes a virtual environment with the ROS 2 wheels a colcon underlay. scripts/setup.sh copies this
# file to <venv>/setup.bash, <venv>/local_setup.bash and, with the path filled in, local_setup.sh,
# so that colcon chains the environment into the workspace's own setup files.
_niaf_prefix=${COLCON_CURRENT_PREFIX:-$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)}
for _niaf_variable in AMENT_PREFIX_PATH CMAKE_PREFIX_PATH; do
    eval "_niaf_value=\${$_niaf_variable:-}"
    case ":$_niaf_value:" in
        *":$_niaf_prefix:"*) ;;
        *) eval "export $_niaf_variable=\$_niaf_prefix\${_niaf_value:+:\$_niaf_value}" ;;
    esac
done
case ":$PATH:" in
    *":$_niaf_prefix/bin:"*) ;;
    *) export PATH="$_niaf_prefix/bin:$PATH" ;;
esac
export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
# Tells scripts/setup.sh that this is not a ROS 2 installed on the system.
export NIAF_ROS=wheels
unset _niaf_prefix _niaf_variable _niaf_value
