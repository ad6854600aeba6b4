"""Texts that processes ask for later: why a constructor failed, or a task was ended."""

from __future__ import annotations

_MAX_NOTES = 1000
_MAX_BYTES = 16 << 20
_MAX_TEXT = 1 << 20
_MAX_ERRNO = 4095  # the name of a process, packed, is larger


class Notes:
    """The newest notes, by number: so many, and of so many bytes together."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}  # oldest first
        self._numbers: dict[str, int] = {}  # of texts that are no process's
        self._bytes = 0
        self._last = 0
        self._left_out = 0

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, number: int) -> str:
        text = self._texts.get(number, "")
        is_a_note = number < 0 or number > _MAX_ERRNO
        if not text and self._left_out and is_a_note:
            return (
                "The reason is not known any more: the oldest notes of this session, "
                f"{self._left_out} so far, were left out."
            )
        return text

    def keep(self, number: int, text: str) -> None:
        """``number``: ``packed`` of a process."""
        self._remove(number)
        self._texts[number] = text = _shortened(text)
        self._bytes += len(text)
        while len(self._texts) > _MAX_NOTES or self._bytes > _MAX_BYTES:
            self._remove(next(iter(self._texts)))
            self._left_out += 1

    def number_of(self, text: str) -> int:
        """That of a text which is no process's; the same text is kept once."""
        text = _shortened(text)
        number = self._numbers.get(text)
        if number is None:
            self._last -= 1  # those of processes are positive
            number = self._last
        self.keep(number, text)
        self._numbers[text] = number
        return number

    def _remove(self, number: int) -> None:
        text = self._texts.pop(number, None)
        if text is not None:
            self._bytes -= len(text)
            if number < 0:
                del self._numbers[text]


def _shortened(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = (_MAX_TEXT - 100) // 2  # what is left is short enough, and stays as it is
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[{left_out} characters left out]\n{text[-half:]}"
