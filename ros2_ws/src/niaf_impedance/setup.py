from glob import glob

from setuptools import find_packages, setup

package_name = "niaf_impedance"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
        ("share/" + package_name + "/config", glob("config/*.yaml")),
        ("share/" + package_name + "/urdf", glob("urdf/*.urdf")),
    ],
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},
    zip_safe=False,
    maintainer="niaf developers",
    maintainer_email="niaf@example.org",
    description="Joint impedance controller for action fields: core library and lifecycle node",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "impedance_node = niaf_impedance.impedance_node:main",
            "niaf_replay = niaf_impedance.replay:main",
            "niaf_plot_recording = niaf_impedance.plot_recording:main",
        ],
    },
)
