"""Name the packages, among them configs/, which a wheel holds as inti_jax/configs.

pyproject.toml can search for packages or map directories to them, but not both.
"""

import setuptools

setuptools.setup(
    packages=[*setuptools.find_packages(include=["inti_jax", "inti_jax.*"]), "inti_jax.configs"],
    package_dir={"inti_jax.configs": "configs"},
    package_data={"inti_jax": ["py.typed"], "inti_jax.pages": ["templates/*"]},
)
