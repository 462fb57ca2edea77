"""A change to Horovod's source, as a value, and the code that makes it.

Horovod's own files are not carried: an edit names a place in the pinned release by an *anchor*, a text that must
stand there exactly once. A release in which an anchor is missing or ambiguous is refused, so an edit can never
end up somewhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence, Union

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


@dataclass(frozen=True)
class Addition:
    """A file of ours, ``source``, that becomes ``file`` of the source tree; ``name`` and ``why`` as of an Edit."""

    name: str
    file: str
    source: Path
    why: str
    issue: str = ""

    @property
    def text(self) -> str:
        return self.source.read_text(encoding="utf-8")


Change = Union[Edit, Addition]


def edit_names(edits: Iterable[Change]) -> list[str]:
    """The names of the edits, each once, in the order in which they are applied."""
    return list(dict.fromkeys(edit.name for edit in edits))


def edits_digest(edits: Sequence[Change]) -> str:
    """A sha256 that changes whenever an edit changes what is compiled."""
    digest = hashlib.sha256()
    for edit in edits:
        added = isinstance(edit, Addition)
        for part in (edit.file, edit.text) if added else (edit.file, edit.anchor, edit.replacement):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def apply_edits(tree: Path, edits: Sequence[Change]) -> None:
    """Make all edits in the unpacked source ``tree``, or none of them.

    Raises EngineBuildError, naming the edit and the file, when a file is missing or an anchor does not stand in
    it exactly once.
    """
    texts: dict[str, str] = {}
    for edit in edits:
        if isinstance(edit, Addition):
            place = tree / edit.file
            if place.exists() or edit.file in texts:
                raise EngineBuildError(f"Addition '{edit.name}' does not fit: {edit.file} is there already. "
                                       f"Is this another release of Horovod, or have the edits been made already?")
            if not place.parent.is_dir():
                raise EngineBuildError(f"Addition '{edit.name}' does not fit: there is no folder for {edit.file} below "
                                       f"{tree}. Is this another release of Horovod?")
            texts[edit.file] = edit.text
            continue
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
