"""Start JAX on its devices, with one clear error line where its platform is missing."""

import jax

from inti_jax.errors import UserError

_PACKAGES = {"tpu": "jax[tpu]", "cuda": "jax[cuda13]"}


def start() -> None:
    """Start JAX on the devices of this process.

    Every command calls this before anything else touches a device. Raises UserError where the platform cannot
    be used; its message says what JAX lacks.
    """
    try:
        jax.devices()
    # JAX fails an assertion where JAX_PLATFORMS names a known platform that is not installed.
    except (RuntimeError, AssertionError) as error:
        raise UserError(_explained(platforms(), _one_line(str(error)))) from error


def platforms() -> str:
    """Return the platforms that JAX is told to use, separated by commas; empty where JAX may choose."""
    return jax.config.jax_platforms or ""  # type: ignore[attr-defined]


def _one_line(text: str) -> str:
    # Leave out JAX's own advice: it leads to a run on CPUs alone, which is seldom wanted.
    return " ".join(text.partition("(set JAX_PLATFORMS='' to")[0].split())


def _explained(platforms: str, reason: str) -> str:
    if not platforms:
        return f"JAX cannot use the devices of this machine: {reason or 'no reason given'}"
    names = {"gpu": "cuda"}
    asked = [names.get(name, name) for name in platforms.split(",")]
    packages = [_PACKAGES[name] for name in asked if name in _PACKAGES]
    install = f"install {' and '.join(packages)} on a machine that has the devices, or " if packages else ""
    return (
        f"JAX_PLATFORMS={platforms}: JAX finds no such "
        f"devices{f' ({reason})' if reason else ': no support for them is installed'}; {install}unset "
        "JAX_PLATFORMS, or set JAX_PLATFORMS=cpu to compute on the CPU"
    )
