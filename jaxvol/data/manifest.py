"""Which files belong together: the items of globs, or of the rows of a CSV manifest.

Input, target and mask of an item lie in one file under several keys, or in several files, which a
row of the manifest names, or which are paired by what the wildcards of their globs matched.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import glob
import io
import os
import re
from collections.abc import Iterable

from jaxvol.data.source import SPLITS
from jaxvol.runtime.regular_files import open_regular
from jaxvol.types import UserError

LISTED = 10  # faults that one message lists
LONGEST = 1000  # characters of one of them
DIGITS = "0123456789"
PATH_BYTES = 4096  # more than this no system takes
LEAVES = ("input", "target", "mask")
WILD = re.compile(r"(\*\*/|\*|\?|\[[^\]]*\])")
AS_REGEX = {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}


@dataclasses.dataclass(frozen=True)
class Item:
    """The files of one example, or of one stack of examples."""

    name: str
    paths: dict[str, str]  # leaf -> file
    group: str  # what must not cross a split
    split: str  # "" = by fractions


def from_globs(data) -> list[Item]:
    """Items of the globs in data.input, data.target and data.mask, each `files` for all splits or
    one glob per split.

    Raises UserError: no glob or no file for the input, globs that are given for other splits than
    the input's, or a file without its partner.
    """
    patterns = _patterns(data.input, "data.input", data.root)
    if not patterns:
        raise UserError(
            "data.input names no files; expected a glob in data.input.files, globs in "
            "data.input.train, val and test, or a manifest in data.manifest.path"
        )
    others = {leaf: _patterns(data[leaf], f"data.{leaf}", data.root) for leaf in LEAVES[1:]}
    items = []
    for split, pattern in patterns.items():
        files = {"input": matches(pattern, "data.input")}  # leaf -> {match: file}
        for leaf, globs in others.items():
            if globs and set(globs) != set(patterns):
                raise UserError(
                    f"data.{leaf} has globs for {', '.join(globs)} and data.input for "
                    f"{', '.join(patterns)}; expected the same, or none where they lie in the "
                    "input's files"
                )
            if globs:
                files[leaf] = matches(globs[split], f"data.{leaf}")
            elif leaf == "target" or data.mask.key:
                files[leaf] = files["input"]
        _check_pairs(files)
        for match in sorted(files["input"], key=natural):
            paths = {leaf: by_match[match] for leaf, by_match in files.items()}
            name = os.path.relpath(paths["input"], os.path.expanduser(data.root) or ".")
            items.append(Item(name, paths, paths["input"], "" if split == "files" else split))
    return items


def from_manifest(data) -> list[Item]:
    """Items of the CSV file data.manifest.path; its relative paths are relative to its folder.

    Raises UserError: a column or cell is missing, a split is unknown, or files are named by globs
    as well.
    """
    path = os.path.expanduser(data.manifest.path)
    if _patterns(data.input, "data.input", "") or _patterns(data.target, "data.target", ""):
        raise UserError(
            "files are named by globs and by data.manifest.path; expected one of the two"
        )
    if not data.manifest.input:
        raise UserError(
            "data.manifest.input is empty; expected the name of the column with the input files"
        )
    roles = (*LEAVES, "group", "split")
    columns = {role: data.manifest[role] for role in roles if data.manifest[role]}
    items, faults, masked = [], [], bool(data.mask.key)
    path_of = functools.cache(functools.partial(_path_of, os.path.dirname(path)))
    for number, line in enumerate(_table(path, columns), 2):
        cells = {role: (line[name] or "").strip() for role, name in columns.items()}
        paths = {leaf: path_of(cells[leaf]) for leaf in LEAVES if leaf in cells}
        if empty := [columns[role] for role, cell in cells.items() if not cell]:
            faults.append(f"line {number} has nothing under {', '.join(empty)}")
        elif strange := [columns[leaf] for leaf, file in paths.items() if not file]:
            faults.append(
                f"line {number} has no file name under {', '.join(strange)} (a NUL, or too long)"
            )
        elif cells.get("split", "train") not in SPLITS:
            faults.append(
                f"line {number} has split '{cells['split']}', expected train, val or test"
            )
        else:
            items.append(_item(cells, paths, masked))
    if faults or not items:
        raise UserError(f"{path}: {listed(faults) or 'no rows; expected one row per file'}")
    return items


def matches(pattern: str, name: str) -> dict[str, str]:
    """What the wildcards of a glob matched -> file; UserError when the glob matches nothing.

    name: the field of the config that holds the glob
    """
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"{name}: the glob '{pattern}' matches no file, seen from {os.getcwd()}")

    def regex(part: str) -> str:
        if part.startswith("[") and WILD.fullmatch(part):
            return f"([{'^' + part[2:-1] if part[1] == '!' else part[1:-1]}])"
        return AS_REGEX[part] if part in AS_REGEX else re.escape(part)

    wildcards = re.compile("".join(map(regex, WILD.split(pattern))))
    matched = {path: wildcards.fullmatch(path) for path in paths}
    return {" ".join(match.groups()) if match else path: path for path, match in matched.items()}


def natural(text: str) -> list:
    """Sorting key by which "box_10" comes behind "box_9"."""
    # of two numbers without leading zeros the longer one is larger, however long they are
    return [
        (0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in DIGITS else (1, 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", text)
    ]


def listed(texts: Iterable[str]) -> str:
    """The first ten texts in one line, the long ones cut, and how many more there are."""
    texts = [text if len(text) <= LONGEST else text[:LONGEST] + " ..." for text in texts]
    more = f"; and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return "; ".join(texts[:LISTED]) + more


def _patterns(settings, name: str, root: str) -> dict[str, str]:
    """split, or "files" for all of them, -> glob; UserError when both are given."""
    globs = {split: settings[split] for split in ("files", *SPLITS) if settings[split]}
    if "files" in globs and len(globs) > 1:
        raise UserError(
            f"{name}.files is given together with {', '.join(s for s in globs if s != 'files')}; "
            "expected one glob for all splits, or one per split"
        )
    return {
        split: os.path.join(os.path.expanduser(root), pattern) for split, pattern in globs.items()
    }


def _check_pairs(files: dict[str, dict[str, str]]) -> None:
    """UserError unless every input has its target and mask, and the other way round."""
    for leaf, by_match in files.items():
        alone = {
            ("input", leaf): sorted(set(files["input"]) - set(by_match)),
            (leaf, "input"): sorted(set(by_match) - set(files["input"])),
        }
        faults = [
            f"{len(names)} {one} files have no {other}: {listed(repr(name) for name in names)}"
            for (one, other), names in alone.items()
            if names
        ]
        if faults:
            raise UserError(
                "; ".join(faults)
                + f" (data.input and data.{leaf} are paired by what the wildcards of their globs "
                "match)"
            )


def _table(path: str, columns: dict[str, str]) -> list[dict[str, str]]:
    """The lines of a CSV file; UserError unless it can be read and has the columns."""
    try:
        text = open_regular(path)
        with io.TextIOWrapper(text, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            lines, header = list(table), [name for name in table.fieldnames or () if name]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV manifest: {error}") from None
    if missing := [f"'{name}' ({role})" for role, name in columns.items() if name not in header]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; columns found: {', '.join(header) or 'none'}"
        )
    return lines


def _path_of(folder: str, cell: str) -> str:
    """The file that a cell names; "" where it cannot be the name of a file."""
    if "\0" in cell or len(os.fsencode(cell)) >= PATH_BYTES:
        return ""
    return os.path.join(folder, os.path.expanduser(cell))


def _item(cells: dict[str, str], named: dict[str, str], masked: bool) -> Item:
    """The item of a row; leaves without a column lie in the input's file (the mask if `masked`)."""
    paths = dict.fromkeys(LEAVES if masked else LEAVES[:2], named["input"]) | named
    return Item(
        cells["input"],
        paths,
        cells["group"] if "group" in cells else paths["input"],
        cells["split"] if "split" in cells else "",
    )
