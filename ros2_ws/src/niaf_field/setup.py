from setuptools import find_packages, setup

package_name = "niaf_field"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy", "numba", "safetensors"],
    extras_require={"test": ["pytest"]},
    zip_safe=True,
    maintainer="niaf developers",
    maintainer_email="niaf@example.org",
    description=(
        "The action field: a modulated sine network as a function of time, its exact "
        "derivatives, hand-over blending and the message codec."
    ),
    license="Apache-2.0",
    python_requires=">=3.10",
)
