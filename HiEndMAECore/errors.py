"""Errors a person can cause, and what each of them means to whoever started the run.

Every one carries a stable `code` (programs look at it), one plain sentence (`message`) that names the
file or the value, and one piece of advice (`advice`) that says what to do. The class decides the exit code of the door.
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
    """Base of all typed errors: `code`, `message`, `advice`, and the `exit_code` of the door."""

    exit_code = EXIT_FAULT

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()

    def __reduce__(self) -> tuple:  # crosses process borders with all three parts
        return type(self), (self.code, self.message, self.advice)


class UsageError(HiEndMAEError):
    """An argument that cannot be meant: unknown option, impossible value (exit code 2)."""

    exit_code = EXIT_USAGE


class InputError(HiEndMAEError):
    """A file that cannot be used: a scan, a label map, a model, a store (exit code 3)."""

    exit_code = EXIT_INPUT


class OutOfMemoryError(HiEndMAEError):
    """The device or the machine has too little memory for this run (exit code 4)."""

    exit_code = EXIT_MEMORY


class MissingDependencyError(HiEndMAEError):
    """A Python package that this job needs is not installed (exit code 5)."""

    exit_code = EXIT_DEPENDENCY

    @classmethod
    def of(cls, package: str, purpose: str) -> MissingDependencyError:
        """The usual sentence for a missing `package` that is needed for `purpose`."""
        return cls(
            "dependency_missing",
            f"The Python package '{package}' is not installed; it is needed {purpose}.",
            f"Install it with: python -m pip install {package}",
        )


class Cancelled(HiEndMAEError):
    """Somebody asked the run to stop: control file, Ctrl-C, SIGTERM, or the parent process has gone (exit code 130)."""

    exit_code = EXIT_CANCELLED

    def __init__(self, code: str = "cancelled", message: str = "The run was cancelled.", advice: str = "") -> None:
        super().__init__(code, message, advice)


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def classify_exception(error: BaseException) -> HiEndMAEError | None:
    """The typed error that a foreign exception stands for, or None. Only real out-of-memory errors count as one."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("HiEndMAE"):
        return MissingDependencyError.of(error.name.split(".")[0], "for this job")
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(said in text for said in _OUT_OF_MEMORY)
    ):
        return OutOfMemoryError(
            "out_of_memory",
            "There is not enough memory for this run.",
            "Close other programs, use a larger --spacing or a smaller --batch-size, or try --device cpu.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        import errno

        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            place = error.filename or "the output folder"
            advice = "Free some space and run the same line again."
            return InputError("disk_full", f"The disk is full ({place}).", advice)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            return InputError(
                "not_allowed", f"{error.filename} cannot be written or read (permission).", "Choose another folder."
            )
    return None
