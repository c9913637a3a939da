"""JAX's devices, touched for the first time: one clear line where the platform is not there."""

import jax

from inti_jax.errors import UserError

_PACKAGES = {"tpu": "jax[tpu]", "cuda": "jax[cuda13]"}


def start() -> None:
    """Start JAX on the devices of this process.

    Every command does this before anything else touches a device. Raises UserError that says what JAX
    lacks where its platform cannot be used.
    """
    try:
        jax.devices()
    # JAX asserts where JAX_PLATFORMS names a known platform that is not installed.
    except (RuntimeError, AssertionError) as error:
        raise UserError(_explained(platforms(), _one_line(str(error)))) from error


def platforms() -> str:
    """Read the platforms that JAX is told to use, with commas between; none where it may choose."""
    return jax.config.jax_platforms or ""  # type: ignore[attr-defined]


def _one_line(text: str) -> str:
    # JAX's own advice may not help: without devices, a run on CPUs alone is seldom what was wanted.
    return " ".join(text.partition("(set JAX_PLATFORMS='' to")[0].split())


def _explained(platforms: str, reason: str) -> str:
    if not platforms:
        return f"JAX cannot use the devices of this machine: {reason or 'it does not say why'}"
    names = {"gpu": "cuda"}
    asked = [names.get(name, name) for name in platforms.split(",")]
    packages = [_PACKAGES[name] for name in asked if name in _PACKAGES]
    install = f"install {' and '.join(packages)} on a machine that has the devices, or " if packages else ""
    return (
        f"JAX_PLATFORMS={platforms}: JAX finds no such devices"
        f"{f' ({reason})' if reason else ': it has no support for them installed'}; "
        f"{install}unset JAX_PLATFORMS, or set JAX_PLATFORMS=cpu to compute on the CPU"
    )
