from glob import glob

from setuptools import find_packages, setup

package_name = "niaf_policy"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(include=[package_name, package_name + ".*"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
        ("share/" + package_name + "/config", glob("config/*.yaml")),
        ("share/" + package_name + "/checkpoints/demo", glob("checkpoints/demo/*")),
    ],
    install_requires=[
        "setuptools",
        "numpy>=1.26",
        "torch>=2.6",
        "transformers>=5.0",
        "tokenizers>=0.20",
        "safetensors>=0.4",
        "pyyaml",
        "tqdm",
        "tensorboard",
    ],
    extras_require={"test": ["pytest"]},
    zip_safe=False,
    maintainer="niaf developers",
    maintainer_email="niaf@example.org",
    description="Neural implicit action field policy: model, training, run time and lifecycle node",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "policy_node = niaf_policy.policy_node:main",
            "train = niaf_policy.train:main",
        ],
    },
)
