from setuptools import find_packages, setup

package_name = "niaf_sim"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed", "data/*.npz"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},
    zip_safe=True,
    maintainer="niaf developers",
    maintainer_email="niaf@example.org",
    description="MuJoCo cell, FOC drive model, cameras, tasks, scripted expert and simulation node",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "sim_node = niaf_sim.sim_node:main",
            "recorder_node = niaf_sim.recorder_node:main",
            "niaf_demo = niaf_sim.demo:main",
            "niaf_record = niaf_sim.record:main",
            "niaf_evaluate = niaf_sim.evaluate:main",
        ],
    },
)
