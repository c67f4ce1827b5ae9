"""What decoders say beside their result: lines on stderr, Python warnings and log records."""

import contextlib
import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator

from e2d_lib.scans.findings import Reason

_LOCK = threading.RLock()  # stderr, warnings filters and loggers are the process's: one listener at a time
_sink: tuple[int, int] | None = None
# how the warnings of libjpeg, libpng, OpenCV and GDCM begin; a progress bar's line, written meanwhile, is none
_DECODER_LINE = re.compile(
    r"(Corrupt|Premature end of) JPEG|(libpng )?(warning|error): |\[ *(WARN|ERROR)|Invalid SOS|Inconsistent|Unknown Ad",
    re.IGNORECASE,
)


def _sink_file() -> int:
    """Descriptor of this process's nameless file for stderr; a forked child makes its own, lest it share the offset."""
    global _sink
    if _sink is None or _sink[0] != os.getpid():
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("stderr")
        else:
            file, name = tempfile.mkstemp()
            os.unlink(name)
        _sink = (os.getpid(), file)
    return _sink[1]


@contextlib.contextmanager
def decoder_lines() -> Iterator[list[str]]:
    """Collect the lines that C libraries write to file descriptor 2 (libjpeg's only report of corrupt data).

    Lines that are no decoder's are written on, unless decoding failed. Costs a few microseconds. Threads take turns
    in here, since descriptor 2 is the process's: decode in parallel by processes.
    """
    said: list[str] = []
    with _LOCK:
        try:
            sink = _sink_file()
            terminal = os.dup(2)
        except OSError:  # no stderr, or no room: then nothing is collected
            yield said
            return
        os.dup2(sink, 2)
        failed = True
        try:
            yield said
            failed = False
        finally:
            os.dup2(terminal, 2)
            if size := os.lseek(sink, 0, os.SEEK_CUR):
                for line in os.pread(sink, size, 0).splitlines(keepends=True):
                    text = line.decode(errors="replace").strip()
                    if failed or _DECODER_LINE.match(text):
                        said.append(text)
                    else:
                        with contextlib.suppress(OSError):
                            os.write(terminal, line)
                os.lseek(sink, 0, os.SEEK_SET)
                os.ftruncate(sink, 0)
            os.close(terminal)


class _Collect(logging.Filter):
    """Takes this thread's records off a logger before its handlers see them."""

    def __init__(self, said: list[str]):
        super().__init__()
        self.said = said
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        if record.levelno >= logging.WARNING:
            self.said.append(record.getMessage())
        return False


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what pydicom, nibabel and their decoders say: Python warnings, log records, stderr."""
    loggers = [logging.getLogger("pydicom"), logging.getLogger("nibabel.global")]
    with _LOCK, decoder_lines() as said, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collect = _Collect(said)
        for logger in loggers:
            logger.addFilter(collect)
        try:
            yield said
        finally:
            for logger in loggers:
                logger.removeFilter(collect)
            said.extend(str(w.message) for w in caught)


def short(text: object, path: str = "") -> str:
    """One line of at most 120 characters, which names no folder of this machine."""
    text = str(text) or type(text).__name__
    text = text.replace(path, os.path.basename(path)) if path else text
    return " ".join(text.split())[:120]


def doubts(said: list[str]) -> list[str]:
    """Reasons for doubt, one for each different thing said."""
    return [f"{Reason.PARSER}: {short(text)}" for text in dict.fromkeys(said)]
