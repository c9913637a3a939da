"""Provide what commands share: arguments for configs and processes, logging, and tables.

`arguments` reads configs with their overrides and sets up logging; `tables` formats tables, and `terminal`
writes beside progress bars. It imports config, host and errors alone. Commands import it, and packages that
print tables.
"""

from inti_jax.cli.arguments import (
    add_config_argument,
    add_process_arguments,
    add_step_argument,
    add_weights_argument,
    parse_with_config,
    parse_with_overrides,
    setup_logging,
)

__all__ = [
    "add_config_argument",
    "add_process_arguments",
    "add_step_argument",
    "add_weights_argument",
    "parse_with_config",
    "parse_with_overrides",
    "setup_logging",
]
