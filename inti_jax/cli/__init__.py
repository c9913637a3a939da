"""Command-line arguments that commands share: configs with overrides, videos, processes; and logging."""

from inti_jax.cli.arguments import (
    add_config_argument,
    add_process_arguments,
    add_step_argument,
    parse_with_config,
    parse_with_overrides,
    setup_logging,
)

__all__ = [
    "add_config_argument",
    "add_process_arguments",
    "add_step_argument",
    "parse_with_config",
    "parse_with_overrides",
    "setup_logging",
]
