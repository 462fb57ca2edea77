"""A change to Horovod's source, as a value, and the code that makes it.

Horovod's own files are not carried: an edit names a place in the pinned release by an *anchor*, a text that must
stand there exactly once. A release in which an anchor is missing or ambiguous is refused, so an edit can never
end up somewhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence

from hvtrain.errors import EngineBuildError


@dataclass(frozen=True)
class Edit:
    """One change: in ``file`` (relative to the source tree) ``anchor`` becomes ``replacement``.

    ``name`` groups the edits that belong together; ``why`` says what goes wrong without it and ``issue`` names
    Horovod's own issues about that, empty where there is none.
    """

    name: str
    file: str
    anchor: str
    replacement: str
    why: str
    issue: str = ""

    def apply_to(self, text: str) -> str:
        """The text with the edit made; EngineBuildError unless the anchor stands in it exactly once."""
        count = text.count(self.anchor)
        if count != 1:
            raise EngineBuildError(
                f"Edit '{self.name}' does not fit {self.file}: expected its anchor exactly once, found it "
                f"{count} times. Is this another release of Horovod, or has the edit been made already? "
                f"The anchor begins with: {self.anchor.strip().splitlines()[0]!r}.")
        return text.replace(self.anchor, self.replacement)


def edit_names(edits: Iterable[Edit]) -> list[str]:
    """The names of the edits, each once, in the order in which they are applied."""
    return list(dict.fromkeys(edit.name for edit in edits))


def edits_digest(edits: Sequence[Edit]) -> str:
    """A sha256 that changes whenever an edit changes what is compiled."""
    digest = hashlib.sha256()
    for edit in edits:
        for part in (edit.file, edit.anchor, edit.replacement):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def apply_edits(tree: Path, edits: Sequence[Edit]) -> None:
    """Make all edits in the unpacked source ``tree``, or none of them.

    Raises EngineBuildError, naming the edit and the file, when a file is missing or an anchor does not stand in
    it exactly once.
    """
    texts: dict[str, str] = {}
    for edit in edits:
        if edit.file not in texts:
            try:
                texts[edit.file] = (tree / edit.file).read_text(encoding="utf-8")
            except FileNotFoundError:
                raise EngineBuildError(
                    f"Edit '{edit.name}' does not fit: {edit.file} is missing below {tree}. "
                    f"Is this another release of Horovod?") from None
        texts[edit.file] = edit.apply_to(texts[edit.file])
    for file, text in texts.items():
        (tree / file).write_text(text, encoding="utf-8")
