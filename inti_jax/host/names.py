"""Convert any file name that the system allows to printable text, distinct for distinct names."""

import re
import unicodedata

# Unicode categories: control characters, line and paragraph separators, and surrogates, which `os.fsdecode`
# makes of bytes that are not UTF-8.
_ESCAPED = ("Cc", "Zl", "Zp", "Cs")
_LOOKS_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")


def printable(name: str) -> str:
    r"""Return a file name as UTF-8 text without control characters.

    Each byte that is not UTF-8, or belongs to a control character or separator, becomes `\x` and two
    hexadecimal digits, as in `caf\xe9`, and each backslash of such a name is doubled. Other names stay as
    they are, except that a name which looks escaped has its backslashes doubled too. So different names have
    different forms.
    """
    plain = name.isprintable() or not any(unicodedata.category(char) in _ESCAPED for char in name)
    if plain and not _LOOKS_ESCAPED.search(name):
        return name
    return "".join(map(_escaped, name))


def _escaped(char: str) -> str:
    if unicodedata.category(char) in _ESCAPED:
        return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    return r"\\" if char == "\\" else char
