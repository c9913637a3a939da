"""Draw pictures with matplotlib, whatever their texts and the user's matplotlib settings are."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("inti_jax")


def png(draw: Callable[[Any], "Figure"], what: str) -> bytes | None:
    """Render the figure that `draw` makes with pyplot as a PNG file's bytes; see `render`."""
    return render(draw, what, "png")


def render(draw: Callable[[Any], "Figure"], what: str, file_format: Literal["png", "svg"]) -> bytes | None:
    """Render the figure that `draw` makes with pyplot as a file's bytes; None where drawing fails.

    Texts are drawn as they are: a `$` in a name starts no formula. A failure is logged with the reason, where
    `what` names the missing picture.
    """
    try:
        with _settings():
            from matplotlib import pyplot

            figure = draw(pyplot)
            buffer = io.BytesIO()
            try:
                figure.savefig(buffer, format=file_format, dpi=120)
            finally:
                pyplot.close(figure)
            return buffer.getvalue()
    except Exception as error:  # whatever matplotlib, a font or a backend raises
        reason = " ".join(str(error).split())
        log.warning("%s could not be drawn (%s: %s)", what, type(error).__name__, reason)
        return None


def legend(axes: "Axes", entries: dict[Any, str], **settings: Any) -> None:
    """Draw the legend of `entries`, which maps drawn objects to their texts.

    Texts that start with an underscore are included, which matplotlib by itself would leave out.
    """
    axes.legend(list(entries), list(entries.values()), frameon=False, **settings)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # overrides a user's matplotlibrc, which may ask for LaTeX
        matplotlib.rcParams["text.parse_math"] = False
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
