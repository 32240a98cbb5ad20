"""What pyproject.toml cannot say: conf/ lies beside the package, and travels inside of it."""

from setuptools import find_namespace_packages, setup

conf = ["e2net.conf", *(f"e2net.conf.{group}" for group in find_namespace_packages("conf"))]
setup(packages=[*find_namespace_packages(include=["e2net*"]), *conf], package_dir={"e2net.conf": "conf"})
