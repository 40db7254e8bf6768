"""The fields of a config with their meanings: the comments beside them where they are stated.

Fields are stated as dictionaries, `"width": 20,  # channels`, or as `config.seed = 0  # ...`, with
the comment on the same line or on the lines above.  The source is read, never run.
"""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxvol.config import base, identity, validate
from jaxvol.runtime import modules


def page(config: ConfigDict) -> str:
    """Every field of a config as it would be set on the command line, and what it means."""
    meanings = of_config(config)
    lines = []
    for path, value in identity.flatten(config.to_dict()).items():
        if path.startswith("preflight.limits."):
            continue
        lines.append(f"  --config.{path}={value!r}")
        meaning = meaning_of(path, meanings)
        lines += textwrap.wrap(
            meaning, 96, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False
        )
    lines.append("  --config.preflight.limits.<check>.<metric>=('<' or '>', warn, fail)")
    lines.append("      limits of the checks; docs/checks.md lists them with their meanings")
    return "\n".join(lines)


def of_config(config: ConfigDict) -> dict[str, str]:
    """{path of a field: its meaning} of the common fields and of the chosen components."""
    meanings = dict(Source(Path(base.__file__)).fields("common", ""))
    for (room, block), prefix in zip(validate.components(config), ("model", "task", "data")):
        file = Path(modules.module(room, block.name).__file__)
        meanings |= dict(Source(file).fields("fields", prefix))
        meanings.setdefault(
            f"{prefix}.name", f"which one: jaxvol/{room}/<name>.py, or a module of your own"
        )
    if "problem" in config.data:
        meanings |= of_equation(config.data.problem.name)
    return meanings


def of_equation(name: str) -> dict[str, str]:
    """{path: meaning} of the fields of an equation, which jaxvol/pdes/ states as FIELDS."""
    meanings = {"data.problem.name": "which equation of jaxvol/pdes/"}
    for file in sorted((modules.PACKAGE / "pdes").glob("*.py")):
        source = Source(file)
        if "FIELDS" in source.constants:
            for path, meaning in source.of_value(source.constants["FIELDS"], ""):
                equation, _, field = path.partition(".")
                if equation == name and field:
                    meanings[f"data.problem.{field}"] = meaning
    return meanings


def meaning_of(path: str, meanings: dict[str, str]) -> str:
    """The meaning of a field, else that of the block that it belongs to; "" where neither has
    one.
    """
    while path and path not in meanings:
        path = path.rpartition(".")[0]
    return meanings[path] if path else ""


class Source:
    """A Python file: its functions, its imports and the comments of its lines."""

    def __init__(self, file: Path):
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        self.constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.modules = {
            name.asname or name.name: f"{node.module}.{name.name}"
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        comments = [t for t in tokens if t.type == tokenize.COMMENT]
        self.comments = {t.start[0]: t.string.lstrip("# ").rstrip() for t in comments}
        # lines that hold nothing but a comment
        self.alone = {t.start[0] for t in comments if not t.line[: t.start[1]].strip()}

    def meaning(self, first: int, value: ast.expr) -> str:
        """The comment of a field whose statement begins in line `first`: the lines above it, and
        what stands behind its first line, its last, or the brace that opens its block.
        """
        lines, above = [], first - 1
        inside = [a.lineno for a in value.args] if isinstance(value, ast.Call) else []
        while above in self.alone:
            lines.insert(0, self.comments[above])
            above -= 1
        beside = {first, *inside, value.end_lineno} - self.alone
        lines += [self.comments[line] for line in sorted(beside) if line in self.comments]
        return " ".join(lines)

    def fields(self, function: str, prefix: str) -> Iterator[tuple[str, str]]:
        """(path, meaning) of what a function states; `prefix`: the block that it fills."""
        for node in self.functions[function].body:
            if isinstance(node, ast.Return) and node.value is not None:
                yield from self.of_value(node.value, prefix)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield from self.of_value(node.value, prefix)  # machines(config)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                        path = joined(prefix, attribute_path(part))
                        if meaning := self.meaning(node.lineno, node.value):
                            yield path, meaning
                        yield from self.of_value(node.value, path)

    def of_value(self, value: ast.expr, path: str) -> Iterator[tuple[str, str]]:
        """(path, meaning) of the fields below a value: a dictionary, or a call that gives one."""
        if isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values):
                if key is None:  # **more_fields()
                    yield from self.of_value(entry, path)
                elif isinstance(key, ast.Constant):
                    below = joined(path, str(key.value))
                    if meaning := self.meaning(key.lineno, entry):
                        yield below, meaning
                    yield from self.of_value(entry, below)
        elif isinstance(value, ast.Call):
            called = value.func
            if isinstance(called, ast.Name) and called.id in self.functions:
                yield from self.fields(called.id, path)
            elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                yield from self.elsewhere(called.value.id, called.attr, path)
            elif isinstance(called, ast.Name) and called.id in ("ConfigDict", "dict"):
                for argument in value.args:
                    yield from self.of_value(argument, path)

    def elsewhere(self, module: str, function: str, path: str) -> Iterator[tuple[str, str]]:
        """(path, meaning) of what a function of another file of jaxvol states."""
        if module not in self.modules or not self.modules[module].startswith("jaxvol."):
            return
        parts = self.modules[module].split(".")[1:]
        file = modules.PACKAGE.joinpath(*parts).with_suffix(".py")
        if file.is_file():
            source = Source(file)
            if function in source.functions:
                yield from source.fields(function, path)


def joined(prefix: str, name: str) -> str:
    """A path below a block."""
    return f"{prefix}.{name}".strip(".")


def attribute_path(target: ast.expr) -> str:
    """`config.a.b` -> "a.b"; "" for a plain name."""
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    return ".".join(parts)
