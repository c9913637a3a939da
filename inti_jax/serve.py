"""Label videos over HTTP with a trained run: `python -m inti_jax.serve --checkpoint RUN`."""

import argparse
import ipaddress
import math

from inti_jax import cli
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import inputs
from inti_jax.host import limits as host_limits
from inti_jax.host.command import run_command
from inti_jax.serving.limits import MEBIBYTE, Access, Limits, Network

_USUAL = Limits()
_PORT = 8000
_MOST_DECODERS = 8


def main(prog: str = "python -m inti_jax.serve") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Labels videos over HTTP: POST /v1/predict takes a form with the file `video`, and / is "
        "a page to try it. Listens on this machine alone unless --host says otherwise.",
        epilog="example: %(prog)s --checkpoint runs/mine, then curl -F video=@clip.mp4 "
        "http://127.0.0.1:8000/v1/predict",
    )
    inputs.add_model_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=_PORT, metavar="N", help=f"port, or 0 for a free one (default {_PORT})"
    )
    parser.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which the server is reached, as in the Host header; may be repeated. localhost "
        "and addresses need none",
    )
    parser.add_argument(
        "--allow_urls", "--allow-urls", action="store_true", help="fetch videos from URLs that requests name"
    )
    parser.add_argument(
        "--allow_network",
        action="append",
        default=[],
        type=_network,
        metavar="CIDR",
        help="with --allow_urls: addresses besides the public internet, such as 10.1.0.0/16; may be repeated",
    )
    _add_limits(parser)
    arguments = parser.parse_args()
    limits = _limits(arguments)
    if not 0 <= arguments.port < 2**16:
        raise UsageError(f"--port is {arguments.port}: it should be at most 65535, or 0 for a free one")
    if arguments.allow_network and not arguments.allow_urls:
        raise UsageError("--allow_network is for URLs: give --allow_urls too")
    cli.setup_logging()

    # Imported late: --help and a wrong argument should not wait for JAX.
    try:
        from inti_jax.serving import server
    except ModuleNotFoundError as error:
        raise UserError(
            f"the service needs a library that is not installed ({error.name}): run `pip install "
            "'inti_jax[serve]'`"
        ) from None
    from inti_jax.evaluation.inference import FileModel
    from inti_jax.runs import compilation

    compilation.cache_for_user()
    listening = server.listen(arguments.host, arguments.port)
    server.run(
        listening,
        lambda: FileModel(
            arguments.checkpoint,
            pretrained=arguments.pretrained,
            step=arguments.step,
            weights=arguments.weights,
        ),
        limits,
        Access(frozenset(arguments.allow_host), arguments.allow_urls, tuple(arguments.allow_network)),
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    for name, default, metavar, meaning in (
        ("--batch", _USUAL.batch, "N", "most videos that the model takes at once"),
        ("--batch_wait", _USUAL.batch_seconds * 1000, "MS", "milliseconds to wait for a batch to fill"),
        ("--waiting", _USUAL.waiting, "N", "requests at a time; further ones get status 503"),
        ("--max_mb", _USUAL.upload_bytes // MEBIBYTE, "MB", "size of a video file"),
        ("--max_frames", _USUAL.frames, "N", "frames of a video"),
        ("--decode_mb", _USUAL.decode_bytes // MEBIBYTE, "MB", "memory for decoding a video"),
        ("--decode_seconds", _USUAL.decode_seconds, "S", "time for decoding a video"),
        ("--timeout", _USUAL.request_seconds, "S", "time for a request, from its start to its answer"),
    ):
        group.add_argument(
            name,
            type=type(default),
            default=default,
            metavar=metavar,
            help=f"{meaning} (default {default:g})",
        )
    group.add_argument(
        "--decoders",
        type=int,
        metavar="N",
        help=f"processes that decode (default: the cores of this machine, at most {_MOST_DECODERS})",
    )


def _limits(arguments: argparse.Namespace) -> Limits:
    """Read the limits. Raises UsageError for one that leaves nothing."""
    if arguments.decoders is None:
        arguments.decoders = min(host_limits.cores(), _MOST_DECODERS)
    for name in (
        "batch", "waiting", "max_mb", "max_frames", "decode_mb", "decode_seconds", "timeout", "decoders",
    ):  # fmt: skip
        value = getattr(arguments, name)
        if not 0 < value < math.inf:
            raise UsageError(f"--{name} is {value}: it should be above 0")
    if not 0 <= arguments.batch_wait <= 1000:
        raise UsageError(f"--batch_wait is {arguments.batch_wait}: it should be from 0 to 1000 milliseconds")
    return Limits(
        upload_bytes=arguments.max_mb * MEBIBYTE,
        frames=arguments.max_frames,
        decode_seconds=arguments.decode_seconds,
        decode_bytes=arguments.decode_mb * MEBIBYTE,
        request_seconds=arguments.timeout,
        waiting=arguments.waiting,
        batch=arguments.batch,
        batch_seconds=arguments.batch_wait / 1000,
        decoders=arguments.decoders,
    )


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{error}: give an address with a length, such as 10.1.0.0/16"
        ) from None


if __name__ == "__main__":
    run_command(main)
