"""Fills the reference page with the entries of the registry, and prepares docstrings for it."""

import re
from typing import Any

import griffe

import jaxnorm
from jaxnorm.norms._registry import REGISTRY


def on_config(config: Any, **_: Any) -> None:
    """Shows the version beside the link to the repository; called by MkDocs."""
    config.extra["release"] = jaxnorm.__version__


def names(package: str, kind: str | None = None) -> list[str]:
    """The norms of one kind in ``jaxnorm``, or the classes in ``jaxnorm.linen`` or ``jaxnorm.nnx``."""
    if package != "jaxnorm":
        return [f"{package}.{n.layer}" for n in REGISTRY if n.layer not in (None, "NoNorm")]
    kinds: dict[str, str] = {}
    for norm in REGISTRY:
        for name in norm.functions + norm.helpers:
            kinds.setdefault(name, norm.kind)
    return [f"{package}.{name}" for name, its_kind in kinds.items() if its_kind == kind]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces ``<!-- norms: package kind -->`` by directives for these norms; called by MkDocs."""
    return re.sub(
        r"<!-- norms: ([\w.]+) ?(\w*) -->",
        lambda wanted: "\n\n".join(f"::: {name}" for name in names(wanted[1], wanted[2])),
        markdown,
    )


class DerivedDocstrings(griffe.Extension):
    """Gives a class without a docstring that of its recipe, as it has at runtime."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called by mkdocstrings once the package is read."""
        for system in ("linen", "nnx"):
            members = pkg[f"{system}._derived"].members
            for cls in (member for member in members.values() if not member.is_alias):
                paths = [members[str(base)].target_path for base in cls.bases]
                recipe = next(path for path in paths if path.startswith("jaxnorm.norms."))
                cls.docstring = pkg[recipe.removeprefix("jaxnorm.")].docstring


class Examples(griffe.Extension):
    """Shows an example as a program: griffe knows a section "Examples", and ours are called "Example"."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by mkdocstrings for each object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
