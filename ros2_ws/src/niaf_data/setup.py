from setuptools import find_packages, setup

package_name = "niaf_data"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(include=[package_name, package_name + ".*"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy>=1.26", "pyarrow>=14", "av>=12"],
    extras_require={"test": ["pytest"]},
    zip_safe=False,
    maintainer="niaf developers",
    maintainer_email="niaf@example.org",
    description="LeRobot v3 dataset directories: write, read (v2.1 too) and statistics",
    license="Apache-2.0",
)
