#!/bin/sh
# fix_wheels.sh VENV
#
# Points the CMake exports of the ROS interface wheels at this machine's Python and NumPy headers
# (they name the folders of the machine the wheels were built on, and CMake refuses folders that
# do not exist). Idempotent; run again after NumPy changed or the environment moved.
set -eu
venv=$1
python=$venv/bin/python
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
numpy=$("$python" -c 'import numpy; print(numpy.get_include())')
if [ ! -f "$include/Python.h" ]; then
    echo "fix_wheels: no Python.h in $include. Install Python's headers (Debian, Ubuntu: apt install python3-dev)." >&2
    exit 1
fi
find "$venv/share" -name 'export_*__rosidl_generator_pyExport.cmake' -exec sed -i -E \
    "s#^( *INTERFACE_INCLUDE_DIRECTORIES \")[^\"]*/include/python3[^;\"]*;[^\"]*/numpy/_?core/include\"#\1$include;$numpy\"#" {} +
