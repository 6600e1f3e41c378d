"""Packages that only some users need: without one, the error names the extra of jaxnorm that installs it."""

from importlib.util import find_spec


def require(package: str, use: str, extra: str) -> None:
    """Validates that a package is installed.

    Raises:
        ModuleNotFoundError: If it is not.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{use} needs {package}, which is not installed. Install it with: "
            f'pip install "jaxnorm[{extra}]"',
            name=package,
        )
