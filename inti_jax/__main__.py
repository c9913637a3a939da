"""Run a command by its name: `inti-jax NAME ...`, or `python -m inti_jax NAME ...`.

`inti-jax NAME` does what `python -m inti_jax.NAME` does; `train` is `python -m inti_jax.main`.
"""

import argparse
import difflib
import importlib
import sys
from pathlib import Path

import inti_jax
from inti_jax.errors import UsageError
from inti_jax.host.command import run_command

# By command, the module with its `main` and what the command does.
COMMANDS = {
    "train": ("main", "train a model and evaluate it, or evaluate it alone"),
    "prepare": ("prepare.__main__", "turn videos into a dataset; check or describe one"),
    "convert": ("convert", "convert CLIP weights, and video models that others published"),
    "plan": ("plan", "show what a config costs before anything runs"),
    "predict": ("predict", "label video files with a trained run"),
    "stream": ("stream", "label a camera, a pipe or a file while it runs"),
    "serve": ("serve", "label videos over HTTP"),
    "features": ("features", "write features of video files"),
    "explain": ("explain", "show which frames and patches a trained run's answers come from"),
    "evaluate": ("evaluate", "print figures with intervals from kept predictions, compare and ensemble runs"),
    "report": ("report", "compare runs in a table and a page"),
    "ablate": ("ablate", "train adaptation methods x compressors x seeds on the embedded dataset"),
    "bench": ("bench", "measure the speed of loading training clips"),
    "doctor": ("doctor.__main__", "try each layer of a run on this machine"),
}


def main() -> None:
    """Run the command that the command line names; exit as it does."""
    run_command(_main)


def _main() -> None:
    prog = "python -m inti_jax" if Path(sys.argv[0]).name == "__main__.py" else "inti-jax"
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description=inti_jax.__doc__,
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items())
        + f"\n\n{prog} COMMAND --help lists the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inti_jax {inti_jax.__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    name = parser.parse_args(sys.argv[1:2]).command  # what follows is the command's own
    if name is None:
        parser.print_help(sys.stderr)
        sys.exit(UsageError.exit_code)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it is one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command `{name}`; {hint}")
    command = importlib.import_module(f"inti_jax.{COMMANDS[name][0]}")
    del sys.argv[1]
    command.main(f"{prog} {name}")


if __name__ == "__main__":
    main()
