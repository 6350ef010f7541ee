"""A model's answers, kept batch by batch as they come, so that a killed evaluation goes on to the same bits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .keys import content_key

Recall = Callable[[Any, Callable[[], Any]], Any]

# A power cut loses at most this much work; a kill loses the batch at hand.
SYNC_SECONDS = 5.0


def computed(asked: Any, compute: Callable[[], Any]) -> Any:
    """The `Recall` that remembers nothing."""
    return compute()


class Answers:
    """The answered batches of one run in a file of lines; called with what a batch asks and how to compute its answer.

    A batch is the unit because it can be computed alone with the same bits: what is left after a kill is never packed
    anew. Questions and answers are JSON values; floats come back to the last bit.

    path   the file, made with the first answer; a line holds a checksum, the key of the question, and the answer
    key    what all answers depend on (`keys.answers_key`); every checksum covers it, so that a line written under
           another key does not count

    Of a file that is there, a last line that was cut short is taken off, and a damaged one counts for nothing.
    ValueError, one line, where the file can't be read or written.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.recalled = self.computed = 0
        self._file: BinaryIO | None = None
        self._size = 0
        self._synced = time.monotonic()
        self._known = self._read()

    def __call__(self, asked: Any, compute: Callable[[], Any]) -> Any:
        """The answer to `asked`: the file's, or computed and then in the file."""
        question = content_key(asked)
        if question in self._known:
            self.recalled += 1
            return self._known[question]
        answer = json.dumps(compute())
        self._append(self._line(f"{question} {answer}".encode()))
        self.computed += 1
        # Through JSON either way: a resumed run can't see other types than an undisturbed one.
        self._known[question] = json.loads(answer)
        return self._known[question]

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            if not self._size:
                self.path.unlink(missing_ok=True)

    def _line(self, content: bytes) -> bytes:
        return hashlib.sha256(self.key.encode() + content).hexdigest().encode() + b" " + content + b"\n"

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        if not self.path.is_file():
            raise ValueError(f"can't keep answers in {self.path}: it is not a plain file")
        try:
            content = self.path.read_bytes()
            self._size = content.rfind(b"\n") + 1
            if self._size < len(content):
                os.truncate(self.path, self._size)
        except OSError as error:
            raise ValueError(f"can't read {self.path}: {error.strerror or error}") from error
        answers = [self._answer(line) for line in content[: self._size].split(b"\n")[:-1]]
        found = dict(answer for answer in answers if answer)
        log = logging.getLogger("mambalab")
        if damaged := answers.count(None):
            log.warning("%s: %d damaged lines of %d; their batches run again", self.path, damaged, len(answers))
        log.info("%s: going on from %d answered batches", self.path.parent, len(found))
        return found

    def _answer(self, line: bytes) -> tuple[str, Any] | None:
        """Question and answer of a line, None where its checksum is not that of its content under this key."""
        content = line.partition(b" ")[2]
        if self._line(content) != line + b"\n":
            return None
        question, _, answer = content.partition(b" ")
        return question.decode(), json.loads(answer)

    def _append(self, line: bytes) -> None:
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
            rest = line
            while rest:
                # A disk that fills up takes a part first.
                rest = rest[self._file.write(rest) :]
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            self._take_back()
            raise ValueError(
                f"can't write {self.path}: {error.strerror or error}; what it holds is kept, and the same command goes "
                "on from there"
            ) from error
        self._size += len(line)

    def _take_back(self) -> None:
        """Leave whole lines only; one that stays cut short all the same is taken off by the next reader."""
        if self._file is not None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                logging.getLogger("mambalab").warning("%s ends in the middle of a line (%s)", self.path, error)
