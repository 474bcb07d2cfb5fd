"""The novels that `models/novelist` learned from, and the two kept back to judge it.

Input is a folder of plain UTF-8 texts from Project Gutenberg (https://www.gutenberg.org), header and footer taken
off, one book a file, named `Any-Title_NUMBER.txt` after its Gutenberg number.
"""

import re
import sys
from pathlib import Path

TRAINING = {
    11: "Alice's Adventures in Wonderland",
    16: "Peter Pan",
    35: "The Time Machine",
    55: "The Wonderful Wizard of Oz",
    74: "The Adventures of Tom Sawyer",
    76: "Adventures of Huckleberry Finn",
    84: "Frankenstein",
    98: "A Tale of Two Cities",
    103: "Around the World in 80 Days",
    113: "The Secret Garden",
    120: "Treasure Island",
    145: "Middlemarch",
    161: "Sense and Sensibility",
    174: "The Picture of Dorian Gray",
    236: "The Jungle Book",
    345: "Dracula",
    514: "Little Women",
    766: "David Copperfield",
    768: "Wuthering Heights",
    1260: "Jane Eyre",
    1342: "Pride and Prejudice",
    1400: "Great Expectations",
    1661: "The Adventures of Sherlock Holmes",
    2852: "The Hound of the Baskervilles",
}
HELD_OUT = {36: "The War of the Worlds", 158: "Emma"}


def read_book(folder: Path, number: int) -> str:
    """The reflowed text of one book; exits with one line if the folder lacks it."""
    found = sorted(folder.glob(f"*_{number}.txt"))
    if not found:
        title = (TRAINING | HELD_OUT)[number]
        sys.exit(
            f"{folder} has no file *_{number}.txt ({title}); fetch it from https://www.gutenberg.org/ebooks/{number}"
        )
    return reflow(found[0].read_text(encoding="utf-8"))


def reflow(text: str) -> str:
    """Undo the hard line breaks of prose; verse and other indented lines keep theirs.

    A break every seventy characters tells a language model nothing, and would end up in its sentences.
    """
    paragraphs = re.split(r"\n\s*\n", text.replace("_", ""))
    flowed = (re.sub(r"\n(?=\S)", " ", paragraph.strip("\n").rstrip()) for paragraph in paragraphs)
    return "\n\n".join(paragraph for paragraph in flowed if paragraph.strip()) + "\n"
