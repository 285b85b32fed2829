from glob import glob

from setuptools import find_packages, setup

package_name = "niaf_bringup"


def shared(folder: str) -> tuple[str, list[str]]:
    """Data files of one folder, installed under the package's share folder."""
    files = [path for path in sorted(glob(f"{folder}/*")) if "__pycache__" not in path]
    return f"share/{package_name}/{folder}", files


setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(include=[package_name, f"{package_name}.*"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
        shared("launch"),
        shared("config"),
        shared("rqt"),
        shared("plotjuggler"),
        shared("foxglove"),
    ],
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},
    zip_safe=True,
    maintainer="niaf developers",
    maintainer_email="niaf@example.org",
    description="Launch files, parameters and a starter for machines without launch_ros",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "niaf_start = niaf_bringup.starter:main",
        ],
    },
)
