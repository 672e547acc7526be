"""Flags of a command line: what is wrong with one is said in one line."""

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from joulegram.cli.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError with one line where argparse prints the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Every word understood. Raises UsageError naming the first that is not."""
        found, left = self.parse_known_args(argv)
        if left:
            self.refuse(left[0])
        return found

    def refuse(self, word: str) -> NoReturn:
        """Raises UsageError with the nearest flag."""
        command = self.prog.rpartition(" ")[2]
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            raise UsageError(f"{command}: {flag} is no flag; see `{self.prog} --help`")
        flags = [name for action in self._actions for name in action.option_strings]
        near = get_close_matches(flag, flags, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"see `{self.prog} --help`"
        raise UsageError(f"{command}: no flag {flag}; {remedy}")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """The `type` of a flag; argparse's `choices` would list every number."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 9 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text}: a whole number from {least} to {most}")
        return int(text)

    return read
