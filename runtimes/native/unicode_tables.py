"""Writes src/unicode_tables.cc: python runtimes/native/unicode_tables.py

The tables say what the ``tokenizers`` package does, by asking it about every code point, and not what one version of Unicode
says: a model was trained on the package's splits. The package's parts even differ in their version of Unicode (0.23: Unicode 16
for letters, numbers and words; 9 for normalization), and Python's ``unicodedata`` has another with every Python.
"""

import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

OUTPUT = Path(__file__).parent / "src/unicode_tables.cc"
CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HEADER = """// Written by runtimes/native/unicode_tables.py: do not edit.
#include "unicode_tables.h"

#include <iterator>

namespace edgeqkv {
"""
Row = int | Sequence["Row"]
HANGUL = range(0xAC00, 0xD7A4)  # (de)composed by arithmetic, not by table

nfc: Callable[[str], str] = normalizers.NFC().normalize_str
nfd: Callable[[str], str] = normalizers.NFD().normalize_str


def matching(pattern: str) -> set[int]:
    """The code points that a regular expression for one character matches."""
    text = "".join(map(chr, CODE_POINTS))
    runs = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed").pre_tokenize_str(text)
    rest = {code for _, (start, stop) in runs for code in CODE_POINTS[start:stop]}
    return set(CODE_POINTS) - rest


def word_characters() -> set[int]:
    """What an added token that is a single word may not touch."""
    tokenizer = Tokenizer(models.BPE(vocab={}, merges=[]))
    tokenizer.add_tokens([AddedToken("a word", single_word=True, normalized=False)])
    return {code for code in CODE_POINTS if not tokenizer.encode(chr(code) + "a word").ids}


def combining_classes() -> dict[int, int]:
    """Canonical combining classes, from where a character is ordered among one mark of each class (a class never changes)."""
    top = "\u0345"  # the only mark of the last class
    marks = {unicodedata.combining(mark): mark for mark in map(chr, CODE_POINTS) if nfd(top + mark) == mark + top}
    marks = dict(sorted(marks.items())) | {unicodedata.combining(top): top}
    classes, bottom = list(marks), marks[min(marks)]
    found = {}
    for code in CODE_POINTS:
        char = chr(code)
        if nfd(char) == char and (nfd(top + char) == char + top or nfd(char + bottom) == bottom + char):
            found[code] = classes[sum(nfd(char + mark) != char + mark for mark in marks.values())]
    return found


def decompositions() -> dict[int, list[int]]:
    """Full canonical decompositions, in canonical order."""
    return {code: list(map(ord, nfd(chr(code)))) for code in CODE_POINTS if code not in HANGUL and nfd(chr(code)) != chr(code)}


def compositions(decomposed: dict[int, list[int]]) -> dict[tuple[int, int], int]:
    """Pairs that become one code point."""
    pairs = {}
    for code, parts in decomposed.items():
        if nfc(chr(code)) == chr(code):
            first = nfc("".join(map(chr, parts[:-1])))
            assert nfc(first + chr(parts[-1])) == chr(code)
            pairs[ord(first), parts[-1]] = code
    return pairs


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive code points: first, last."""
    runs = groupby(enumerate(sorted(codes)), key=lambda item: item[1] - item[0])
    found = [[code for _, code in run] for _, run in runs]
    return [(run[0], run[-1]) for run in found]


def braced(row: Row) -> str:
    return hex(row) if isinstance(row, int) else "{" + ",".join(map(braced, row)) + "}"


def table(row: str, name: str, rows: Iterable[Row]) -> str:
    """C++ for one sorted table."""
    lines = textwrap.wrap(", ".join(map(braced, rows)), 126, initial_indent="    ", subsequent_indent="    ")
    rows_name = f"k{name}Rows"
    return "\n".join(
        [
            f"constexpr {row} {rows_name}[] = {{",
            *lines,
            "};",
            f"const Table<{row}> k{name} = {{{rows_name}, std::size({rows_name})}};",
            "",
        ]
    )


def source() -> str:
    """The text of src/unicode_tables.cc."""
    marks, decomposed = combining_classes(), decompositions()
    classes = [(*run, value) for value in sorted(set(marks.values())) for run in ranges(c for c in marks if marks[c] == value)]
    composed = [(*pair, code) for pair, code in sorted(compositions(decomposed).items())]
    tables = [
        table("CodeRange", "Letters", ranges(matching(r"\p{L}"))),
        table("CodeRange", "Numbers", ranges(matching(r"\p{N}"))),
        table("CodeRange", "Spaces", ranges(matching(r"\s"))),
        table("CodeRange", "Words", ranges(word_characters())),
        table("ClassRange", "CombiningClasses", sorted(classes)),
        table("Decomposition", "Decompositions", [(code, parts) for code, parts in sorted(decomposed.items())]),
        table("Composition", "Compositions", composed),
    ]
    return "\n".join([HEADER, *tables, "}  // namespace edgeqkv\n"])


def main() -> None:
    OUTPUT.write_text(source(), encoding="utf-8")


if __name__ == "__main__":
    main()
