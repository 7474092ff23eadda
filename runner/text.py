"""Text of unknown origin made fit to be shown."""

import unicodedata


def visible(text: str) -> str:
    """Control, direction and half characters as symbols that are seen, not obeyed; XML could not even hold them."""
    return "".join(symbol(each) for each in text)


def symbol(character: str) -> str:
    """A character, or what stands for it: ␛ for escape, a backslash and its number for those that turn text around."""
    code = ord(character)
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs") or code & 0xFFFE == 0xFFFE
    if character in "\n\t" or not hidden:
        return character
    return chr(0x2400 + code) if code < 32 else f"\\u{code:04x}"
