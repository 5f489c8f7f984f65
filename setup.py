"""Maps the folders of the source tree to their import names, so that no generic name is ever installed."""

from setuptools import find_packages, setup

FOLDERS = {"ctrl": "ctrl", "ctrl.envs": "envs", "ctrl.agents": "agents", "ctrl.experiments": "experiments"}


def discover_packages() -> list[str]:
    """Return the import names of the four folders and all their sub-folders, so that none can be forgotten."""
    return [
        package
        for name, folder in FOLDERS.items()
        for package in (name, *(f"{name}.{sub_folder}" for sub_folder in find_packages(folder)))
    ]


setup(license="Apache-2.0", packages=discover_packages(), package_dir=FOLDERS, package_data={"ctrl": ["py.typed"]})
