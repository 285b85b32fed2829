# The robot's PC: ROS 2 Jazzy, controller, no GPU.
#   docker build -f docker/Dockerfile.robot -t niaf-robot .
FROM ros:jazzy-ros-base

SHELL ["/bin/bash", "-c"]
RUN apt-get update && apt-get install -y --no-install-recommends \
        build-essential cmake python3-dev python3-venv \
        ros-jazzy-ros2launch ros-jazzy-launch-yaml ros-jazzy-diagnostic-msgs ros-jazzy-sensor-msgs \
        ros-jazzy-trajectory-msgs ros-jazzy-std-srvs \
        libegl1 libgl1-mesa-dri libosmesa6 iproute2 can-utils \
    && rm -rf /var/lib/apt/lists/*

# Another index for torch's CPU build: --build-arg TORCH_ARGS="torch==2.13.0 --index-url <index>"
ARG TORCH_ARGS=""
WORKDIR /opt/niaf
COPY . .
RUN source /opt/ros/jazzy/setup.bash && make setup && rm -rf /root/.cache/pip

COPY docker/entrypoint.sh /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "niaf_bringup", "impedance.launch.yaml"]
