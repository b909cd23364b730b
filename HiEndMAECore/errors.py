"""Typed errors, the exit codes of the commands, and the translation of foreign exceptions.

Every typed error carries a stable `code` for programs, one sentence (`message`) that names the file or the value, and one
sentence of advice (`advice`) that names the option to use. The class of the error decides the exit code of the command.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_MEMORY = 4
EXIT_DEPENDENCY = 5
EXIT_CANCELLED = 130


class HiEndMAEError(Exception):
    """The base class of all typed errors.

    Args:
        code: Stable identifier in snake case.
        message: One sentence that names the file or the value.
        advice: One sentence that says what to do, or an empty text.

    Attributes:
        exit_code: The exit code of a command that ends with this error.
    """

    exit_code = EXIT_FAULT

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()

    def __reduce__(self) -> tuple:
        # The default would pass the message alone, and an error must arrive whole from a worker process.
        return type(self), (self.code, self.message, self.advice)


class UsageError(HiEndMAEError):
    """A wrong argument: an unknown option or an impossible value (exit code 2)."""

    exit_code = EXIT_USAGE


class InputError(HiEndMAEError):
    """An unusable file: a scan, a label map, a model or a store (exit code 3)."""

    exit_code = EXIT_INPUT


class OutOfMemoryError(HiEndMAEError):
    """Too little memory on the device or in the machine (exit code 4)."""

    exit_code = EXIT_MEMORY


class MissingDependencyError(HiEndMAEError):
    """A required Python package that is not installed (exit code 5)."""

    exit_code = EXIT_DEPENDENCY

    @classmethod
    def of(cls, package: str, purpose: str) -> MissingDependencyError:
        """Return the error for one missing package.

        Args:
            package: The name that pip knows.
            purpose: What the package is needed for, as the end of a sentence: "to draw figures".
        """
        return cls(
            "dependency_missing",
            f"The Python package '{package}' is not installed; it is needed {purpose}.",
            f"Install it with: python -m pip install {package}",
        )


class Cancelled(HiEndMAEError):
    """A run cancelled by the control file, Ctrl-C, SIGTERM, or the end of its parent process (exit code 130)."""

    exit_code = EXIT_CANCELLED

    def __init__(self, code: str = "cancelled", message: str = "The run was cancelled.", advice: str = "") -> None:
        super().__init__(code, message, advice)


_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def classify_exception(error: BaseException) -> HiEndMAEError | None:
    """Translate an exception of Python, torch or the operating system into a typed error.

    Args:
        error: Any exception that is not a `HiEndMAEError`.

    Returns:
        `MissingDependencyError` for a missing package; `OutOfMemoryError` for a failed allocation, recognized by its type
        or by the exact texts of torch and CUDA; `InputError` `disk_full` or `not_allowed` for a full disk or a missing
        permission; None for everything else, which is then a fault of the engine.
    """
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("HiEndMAE"):
        return MissingDependencyError.of(error.name.split(".")[0], "for this job")
    if _is_out_of_memory(error):
        return OutOfMemoryError(
            "out_of_memory",
            "There is not enough memory for this run.",
            "Close other programs, use a larger --spacing or a smaller --batch-size, or try --device cpu.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return _classify_os_error(error)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception reports a failed allocation. Looser text matching would take other faults for one."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(known in text for known in _OUT_OF_MEMORY_TEXTS)
    )


def _classify_os_error(error: OSError) -> InputError | None:
    """Return the typed error for a full disk or a missing permission, None for other errors of the operating system."""
    import errno

    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        location = error.filename or "the output folder"
        return InputError(
            "disk_full", f"The disk is full ({location}).", "Free some space and run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        message = f"{error.filename} cannot be written or read (permission)."
        return InputError("not_allowed", message, "Choose another folder.")
    return None
