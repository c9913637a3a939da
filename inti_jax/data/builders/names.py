"""File names as text: any name that the system allows gets a printable form, and two names never the same."""

import re
import unicodedata

# Control characters, separators of lines and paragraphs, and what `os.fsdecode` makes of bytes outside UTF-8.
_ESCAPED = ("Cc", "Zl", "Zp", "Cs")
_LOOKS_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")


def printable(name: str) -> str:
    r"""Write a file name as text in UTF-8 without control characters.

    Each byte that is not UTF-8 or is part of a control character becomes `\x` and two hexadecimal digits, as
    in `caf\xe9`; in such a name a backslash is doubled. All other names stay as they are, except that one
    which looks escaped has its backslashes doubled too, so different names have different forms.
    """
    plain = name.isprintable() or not any(unicodedata.category(char) in _ESCAPED for char in name)
    if plain and not _LOOKS_ESCAPED.search(name):
        return name
    return "".join(map(_escaped, name))


def _escaped(char: str) -> str:
    if unicodedata.category(char) in _ESCAPED:
        return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    return r"\\" if char == "\\" else char
