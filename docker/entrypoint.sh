#!/bin/bash
# Puts ROS 2 and the niaf workspace into the environment, then runs the command.
set -e
source "/opt/ros/${ROS_DISTRO:-jazzy}/setup.bash"
source /opt/niaf/scripts/env.sh
exec "$@"
