"""Check the values of a configuration and freeze them as a `Config`; read arguments of config files."""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import pydantic

from inti_jax.config import checks, literals
from inti_jax.config.backbones import AUTO, BACKBONES, BackboneSize
from inti_jax.config.schema import Config
from inti_jax.errors import UsageError, UserError
from inti_jax.host import stores
from inti_jax.host.paths import local_path
from inti_jax.hub import names
from inti_jax.hub.names import Place

# Python keeps bytes of a file's name that are not UTF-8 as lone surrogates, which JSON text cannot hold.
# Stand-ins replace them on the way through JSON.
_STAND_INS = {0xDC00 + byte: 0x10DC00 + byte for byte in range(0x80, 0x100)}
_STOOD_FOR = {stand_in: surrogate for surrogate, stand_in in _STAND_INS.items()}


class ConfigError(UserError):
    """A configuration that cannot run; the message names the key, its value and what would be valid."""

    exit_code = 2


def defaults() -> ml_collections.ConfigDict:
    """Make a ConfigDict of every key with its default.

    Setting a key that does not exist raises no error here: `from_dict` finds it.
    """
    return ml_collections.ConfigDict(_settable(Config()))


def _settable(section: Any) -> dict[str, Any]:
    """Give the values of `section` by key, nested, for a ConfigDict.

    Where several types are valid, the ConfigDict lets a value change its type.
    """
    values = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = _settable(value)
        elif len(literals.kinds(field.type)) > 1:  # by default, a ConfigDict only takes the default's type
            value = ml_collections.FieldReference(value, field_type=object)
        values[field.name] = value
    return values


def parse_arg(arg: str, **defaults: Any) -> dict[str, Any]:
    """Parse `arg`, the arguments of a config file in `FILE:key=value,key=value`, on top of `defaults`.

    A value has the type of its default: `true` or `false`, a number, a tuple such as `(3,6)`, or a text.
    Raises ConfigError for a key that `defaults` does not name, or a value of another type.
    """
    values = dict(defaults)
    for item in literals.items(arg):
        key, equals, text = item.partition("=")
        if key not in defaults or not equals:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = (
                f"did you mean `{near[0]}`?"
                if near
                else f"write key=value, with key one of {', '.join(defaults)}"
            )
            raise ConfigError(f"config argument `{item}`: {hint}")
        kind = type(defaults[key])
        value = literals.read(text, kind)
        if kind is float and type(value) is int:
            value = float(value)
        if defaults[key] is not None and type(value) is not kind:
            raise ConfigError(f"config argument `{item}`: {text!r} is not of type {kind.__name__}")
        values[key] = value
    return values


def type_of(key: str) -> Any:
    """Give the annotated type of the value that the dotted `key` names.

    Raises ConfigError where `key` does not name a single value of the configuration.
    """
    section: Any = Config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        fields = {field.name: field.type for field in dataclasses.fields(section)}
        if part not in fields:
            raise ConfigError(_unknown_key(".".join(parts[: depth + 1]), list(fields)))
        section = fields[part]
        if dataclasses.is_dataclass(section) != (depth < len(parts) - 1):
            raise ConfigError(
                f"config: `{key}` is a section, not a key; give a whole key, such as `train.steps`"
            )
    return section


def read_json(path: Path) -> Any:
    """Read a run's config.json.

    Raises ConfigError where it is absent or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: is {path.parent} the directory of a run?") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def from_dict(values: dict[str, Any], size: BackboneSize | None = None) -> Config:
    """Check `values`, nested as the dataclasses are, and freeze them as a `Config`.

    `size` is that of the backbone, by default of the one that is named. Where none is, with "auto", what
    depends on the size is left to `check_size`. Raises ConfigError where a key is unknown, a value has the
    wrong type, or values exclude each other.
    """
    try:
        # From JSON, strict types still accept a list for a tuple and a dict for a dataclass.
        text = json.dumps(values, ensure_ascii=False, default=repr).translate(_STAND_INS)
        config = pydantic.TypeAdapter(Config).validate_json(text)
    except pydantic.ValidationError as error:
        raise ConfigError(_first_problem(error)) from None
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # a dict that contains itself, or whose keys are no strings
        raise ConfigError(
            f"config: a value should be a number, a text, true or false, a tuple or a section: {error}"
        ) from None
    config = _with_local_paths(config)
    for problem in checks.problems(config):
        raise ConfigError(f"config: {problem}")
    if size is None and config.model.backbone != AUTO:
        size = BACKBONES[config.model.backbone]
    if size is not None:
        check_size(config, size)
    return config


def check_size(config: Config, size: BackboneSize) -> None:
    """Check what depends on the size of the backbone. Raises ConfigError."""
    for problem in checks.size_problems(config, size):
        raise ConfigError(f"config: {problem}")


def _with_local_paths(config: Config) -> Config:
    """Expand `~` in the values that are paths.

    Raises ConfigError for a value that is no path on this machine, nor a name on the Hub where that is taken.
    """

    def local(key: str, text: str, read: Callable[[str], Place] = local_path, *, url: bool = True) -> str:
        text = text.translate(_STOOD_FOR)
        if not text:  # not given
            return text
        try:
            if url and stores.is_url(text):
                if text != stores.public(text):
                    raise UsageError(
                        f"{stores.public(text)}: config.json would keep the credentials of this URL: "
                        "download the file, or give a URL without a query, a user and a password"
                    )
                return stores.check(text)
            path = read(text)
        except UserError as error:
            raise ConfigError(f"config: `{key}`: {error}") from None
        # Keep the path as written unless it has `~`: `./random` is a file, `random` is not.
        return str(path) if text.startswith("~") else text

    model, data = config.model, config.data
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            model,
            pretrained=local("model.pretrained", model.pretrained, names.place),
            start_from=local("model.start_from", model.start_from, names.local_or_uri),
        ),
        data=dataclasses.replace(
            data,
            data_dir=local("data.data_dir", data.data_dir),
            cache_dir=local("data.cache_dir", data.cache_dir, url=False),
        ),
    )


def _first_problem(error: pydantic.ValidationError) -> str:
    """Describe the first problem: the key, its value and what would be valid."""
    found = error.errors()
    key = _key_of(found[0])
    # Where several types are valid, there is a problem with each. One in a part of the value says the most.
    same = [problem for problem in found if f"{_key_of(problem)}.".startswith(f"{key}.")]
    deeper = [problem for problem in same if _key_of(problem) != key]
    problem = deeper[0] if deeper else found[0]
    key = _key_of(problem)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_key(key, _keys_beside(key))
    if problem["type"] == "missing":  # `loc` is that of an item, the input the whole
        return f"config: `{key.rpartition('.')[0]}` is {problem['input']!r}: it should have more items"
    reasons = " or ".join(dict.fromkeys(_reason(other["msg"]) for other in (deeper[:1] or same)))
    be = "" if reasons.startswith("have ") else "be "
    return f"config: `{key}` is {problem['input']!r}: it should {be}{reasons}"


def _reason(message: str) -> str:
    """Shorten what pydantic says of a value to what comes after "it should be", or to "have ..."."""
    reason = re.sub(r"^(Input should be|Tuple should) ", "", message)
    return reason.replace("a valid array", "a valid tuple").replace(" after validation", "")


def _key_of(problem: Any) -> str:
    """Give the dotted key of a problem that pydantic reports."""
    # Where several types are valid, `loc` also names the type, which is no identifier.
    return ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part.isidentifier())


def _unknown_key(key: str, valid: list[str]) -> str:
    """Say that `key` is unknown, and which one may be meant."""
    near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(valid)}"
    return f"config: unknown key `{key}`; {hint}"


def _keys_beside(key: str) -> list[str]:
    """List the valid keys of the section that `key` is in."""
    section: Any = Config
    for part in key.split(".")[:-1]:
        section = {field.name: field.type for field in dataclasses.fields(section)}[part]
    return [field.name for field in dataclasses.fields(section)]
