"""Texts to summarise, to ask about and to edit: what every Python installation brings along.

Where an answer copies from its prompt, a draft must have learned to copy. The texts are the language's documentation
and functions of the standard library; none of them is in the benchmark's prompts.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from pydoc_data.topics import topics
from types import ModuleType

_PASSAGE = (500, 1300)  # characters: 120 to 330 tokens
_FUNCTION = (250, 1100)
_MODULES = (  # noqa: SIM905 - one a line would take a page
    "argparse ast base64 bisect calendar cmd codecs collections colorsys configparser contextlib copy csv datetime "
    "difflib dis doctest email.message email.utils enum fileinput fnmatch fractions functools getopt gettext glob "
    "gzip heapq html.parser http.client http.cookies imaplib inspect ipaddress json.decoder json.encoder keyword "
    "linecache locale logging logging.handlers mailbox mimetypes netrc numbers optparse os pathlib pdb pickle "
    "pickletools platform plistlib pprint queue quopri random reprlib sched selectors shelve shlex shutil smtplib "
    "socket socketserver statistics string subprocess sysconfig tarfile tempfile textwrap threading timeit tokenize "
    "trace traceback tracemalloc types typing urllib.parse urllib.request urllib.robotparser uuid wave weakref "
    "webbrowser xml.dom.minidom xml.etree.ElementTree zipfile"
).split()


@cache
def passages() -> tuple[str, ...]:
    """Paragraphs of the language's documentation, joined up to a readable length."""
    found: list[str] = []
    for topic in sorted(topics):
        paragraphs = topics[topic].strip().split("\n\n")[1:]  # without the heading
        joined = ""
        for paragraph in paragraphs:
            if joined and len(joined) + len(paragraph) > _PASSAGE[1]:
                found.append(joined)
                joined = ""
            joined = f"{joined}\n\n{paragraph}".strip("\n")
        found.append(joined)
    return tuple(text for text in found if _PASSAGE[0] <= len(text) <= _PASSAGE[1])


@cache
def functions() -> tuple[str, ...]:
    """Functions and methods of the standard library, as their source reads."""
    found: dict[str, None] = {}  # a set in order of appearance
    for name in _MODULES:
        found.update(dict.fromkeys(_sources(importlib.import_module(name))))
    return tuple(found)


def _sources(module: ModuleType) -> list[str]:
    """Functions and methods in order of their names, indented as if they stood alone."""
    members = [
        value for _, value in sorted(vars(module).items()) if getattr(value, "__module__", "") == module.__name__
    ]
    classes = [member for member in members if inspect.isclass(member)]
    callables = [member for member in members if inspect.isfunction(member)]
    callables += [value for each in classes for _, value in sorted(vars(each).items()) if inspect.isfunction(value)]
    sources = []
    for function in callables:
        try:
            source = inspect.cleandoc("\n" + inspect.getsource(function))
        except OSError:  # made by code, such as a dataclass's methods
            continue
        if _FUNCTION[0] <= len(source) <= _FUNCTION[1]:
            sources.append(source)
    return sources
