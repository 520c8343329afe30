"""From bytes to typed values, once, at the edge of the house.

msgspec checks types and ranges; this module turns what it says into an `InputError` that names the file, the line,
the field, what was found and what is accepted. Nothing behind the edge validates again.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import yaml

from traces.errors import InputError, nearest

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*) - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$", re.DOTALL)
_GOT = re.compile(r", got `\w+`")  # of a whole number beyond 64 bits another kind is said once it is decoded
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]+)`")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")


class _YamlLoader(yaml.SafeLoader):
    """YAML with the floats of YAML 1.2: PyYAML's own rule, of YAML 1.1, reads 1.6e12 as a text.

    A key that stands twice is an error; PyYAML would keep the last and forget the others.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                twice = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_bytes(path: Path) -> bytes:
    """The file's bytes; a `.gz` file is unpacked. Raises InputError when it cannot be read."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except IsADirectoryError:
        raise InputError("is a folder", file=path, accepted="a file") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:  # a name with a null byte is a ValueError
        raise InputError(f"cannot be read ({error})", file=path) from None


def sha256(data: bytes) -> str:
    """`sha256:` and the digest of `data`, as provenance records it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines of a JSON Lines file, each with its line number, counted from 1."""
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            yield number, line


def decode_json(data: bytes, type_: type[T], *, file: str | Path, line: int | None = None) -> T:
    """One JSON value as `type_`. Raises InputError with file, line and field."""
    try:
        data.decode()  # msgspec looks at the text of those fields only that are read
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _json_error(error, data, type_, file, line) from None


def _json_error(error: Exception, data: bytes, type_: Any, file: str | Path, line: int | None) -> InputError:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as broken:
        return InputError(f"is not JSON ({broken})", file=file, line=line)
    if (keys := _not_finite(value)) is not None:
        found = _value_at(value, keys)
        return InputError(file=file, line=line, field=_dotted(keys), found=found, accepted="a finite number")
    if isinstance(error, msgspec.ValidationError):
        return _input_error(error, value, type_, file, line)
    return InputError(f"is not JSON ({error})", file=file, line=line)


def _not_finite(value: Any) -> list[str | int] | None:
    """Where the first NaN or infinity stands; JSON has neither, but Python's own reader and writer know them.

    What YAML's aliases put in several places is looked at once.
    """
    stack: list[tuple[list[str | int], Any]] = [([], value)]
    seen: set[int] = set()
    while stack:
        keys, part = stack.pop()
        if isinstance(part, float) and not math.isfinite(part):
            return keys
        if isinstance(part, dict | list):
            if id(part) in seen:
                continue
            seen.add(id(part))
        inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        stack.extend(reversed([([*keys, key], item) for key, item in inner]))
    return None


def read_columns(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """The named columns of a CSV file with a header, which may stand in any order and beside others.

    Their cells are finite numbers, none negative, and those of the first name ascend. Raises InputError with file,
    line and field.
    """
    try:
        reader = csv.reader(io.StringIO(read_bytes(path).decode()))
    except UnicodeDecodeError as error:
        raise InputError(f"is not text ({error})", file=path) from None
    header = next(reader, [])
    for name in names:
        if name not in header:
            raise InputError("is missing", file=path, line=1, field=name, accepted=f"a header with {', '.join(names)}")
    table: dict[str, list[float]] = {name: [] for name in names}
    for cells in reader:
        if len(cells) != len(header):
            message, accepted = f"has {len(cells)} cells", f"{len(header)}, as the header"
            raise InputError(message, file=path, line=reader.line_num, accepted=accepted)
        for name in names:
            table[name].append(_cell(cells[header.index(name)], path, reader.line_num, name))
        if len(times := table[names[0]]) > 1 and times[-1] <= times[-2]:
            found, accepted = times[-1], f"more than the row before, {times[-2]}"
            raise InputError(file=path, line=reader.line_num, field=names[0], found=found, accepted=accepted)
    return {name: np.array(values) for name, values in table.items()}


def _cell(text: str, path: Path, line: int, field: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise InputError(file=path, line=line, field=field, found=text, accepted="a finite number, not negative")
    return value


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML or JSON file's mapping, which can say on which line a key stands.

    Attributes:
        path: the file.
        value: the mapping as the user wrote it.
        tree: the same with line numbers.
    """

    path: Path
    value: dict[str, Any]
    tree: yaml.Node

    def convert(self, type_: type[T]) -> T:
        """The mapping as `type_`. Raises InputError; an unknown key is an error that names the nearest known one."""
        try:
            return msgspec.convert(self.value, type_)
        except msgspec.ValidationError as error:
            raise _input_error(error, self.value, type_, self.path, None, self.tree) from None

    def error(self, keys: Sequence[str | int], message: str = "", *, accepted: str | None = None) -> InputError:
        """An InputError about what stands at `keys`."""
        at = list(keys)
        found = None if message else _value_at(self.value, at)
        line = _line(self.tree, at, None)
        return InputError(message, file=self.path, line=line, field=_dotted(at), found=found, accepted=accepted)


def read_document(path: Path) -> Document:
    """Read a YAML or JSON file that holds a mapping. Raises InputError with file, line and field."""
    data = read_bytes(path)
    try:
        loader = _YamlLoader(data)
        tree = loader.get_single_node()
        value = None if tree is None else loader.construct_document(tree)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise InputError(f"is not YAML ({getattr(error, 'problem', error)})", file=path, line=line) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not text ({error})", file=path) from None
    except RecursionError:
        raise InputError("is nested too deeply", file=path) from None
    if not isinstance(value, dict) or tree is None:
        raise InputError(file=path, found=value, accepted="a mapping of keys to values")
    if (line := _held_by_itself(tree)) is not None:
        raise InputError("an anchor holds its own alias", file=path, line=line)
    document = Document(path, value, tree)
    if (keys := _not_finite(value)) is not None:
        raise document.error(keys, accepted="a finite number")
    return document


def _held_by_itself(tree: yaml.Node) -> int | None:
    """Line of a list or mapping that an alias within it stands for, so that it has no end; None: there is none."""
    stack, above, ended = [(tree, False)], set(), set()
    while stack:
        node, is_left = stack.pop()
        if is_left:
            above.discard(id(node))
            ended.add(id(node))
        elif id(node) in above:
            return int(node.start_mark.line) + 1
        elif id(node) not in ended and isinstance(node, yaml.CollectionNode):
            above.add(id(node))
            stack.append((node, True))
            pairs = isinstance(node, yaml.MappingNode)
            stack += [(inner, False) for item in node.value for inner in (item if pairs else (item,))]
    return None


def yaml_value(text: str) -> Any:
    """A YAML value by the rules of the files. Raises yaml.YAMLError."""
    loader = _YamlLoader(text)
    try:
        tree = loader.get_single_node()
        if tree is None:
            return None
        if _held_by_itself(tree) is not None:
            raise yaml.YAMLError("an anchor holds its own alias")
        return loader.construct_document(tree)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def decode_yaml(path: Path, type_: type[T]) -> T:
    """A YAML or JSON file as `type_`. Raises InputError with file, line and field."""
    return read_document(path).convert(type_)


def _input_error(
    error: msgspec.ValidationError,
    value: Any,
    type_: Any,
    file: str | Path,
    line: int | None,
    tree: yaml.Node | None = None,
) -> InputError:
    match = _AT.match(str(error))
    what, path = (match["what"], match["path"]) if match else (str(error), "")
    keys = _keys(path, value, type_, str(error), from_json=tree is None)
    wrong_key = _wrong_key(value, keys, type_, str(error), from_json=tree is None) if match and match["key"] else None
    if unknown := _UNKNOWN.search(what):
        name = unknown["name"]
        accepted = nearest(name, _fields_at(type_, keys))
        return InputError(
            "is unknown",
            file=file,
            line=_line(tree, [*keys, name], line),
            field=_dotted([*keys, name]),
            accepted=accepted,
        )
    if missing := _MISSING.search(what):
        at = [*keys, missing["name"]]
        few = _listed(_type_at(type_, at))
        return InputError("is missing", file=file, line=_line(tree, keys, line), field=_dotted(at), accepted=few)
    kind = _type_at(type_, keys)
    if wrong_key is not None and isinstance(kind, msgspec.inspect.DictType):
        kind = kind.key_type
    wanted = _listed(kind) or _wanted(what, _info_at(type_, keys))
    found = _value_at(value, keys) if wrong_key is None else wrong_key
    return InputError(file=file, line=_line(tree, keys, line), field=_dotted(keys), found=found, accepted=wanted)


def _wanted(what: str, info: Any) -> str:
    """What msgspec says that it expected; what it calls an object in words of YAML, with the keys that it may have."""
    wanted = re.sub(r", got .*$", "", what.removeprefix("Expected ")).replace("`", "")
    kinds, of, size = wanted.partition(" of ")
    others = kinds.split(" | ")
    if "object" not in others:
        return wanted
    others.remove("object")
    known = info.types if isinstance(info, msgspec.inspect.UnionType) else [info]
    names = [field.encode_name for kind in known for field in getattr(kind, "fields", ())]
    keys = f" with keys {', '.join(names)}" if names else ""
    return f"{' | '.join(others)}{', or ' if others else ''}a mapping{of}{size}{keys}"


def _listed(kind: Any) -> str | None:
    """The values of a type that has few; None: of another."""
    match kind:
        case msgspec.inspect.LiteralType():
            values: Sequence[Any] = kind.values
        case msgspec.inspect.EnumType():
            values = [one.value for one in kind.cls]
        case _:
            return None
    return ", ".join(str(one) for one in values)


def _keys(path: str, value: Any, type_: Any, said: str, *, from_json: bool) -> list[str | int]:
    """The keys that lead to where msgspec says an error is; of a dictionary it says `[...]` for any of its keys."""
    keys: list[str | int] = []
    for name, index in _STEP.findall(path):
        if index != "...":
            keys.append(name if name else int(index))
            continue
        key = _wrong_key(value, keys, type_, said, from_json=from_json)
        if key is None:
            break
        keys.append(key)
    return keys


def _wrong_key(value: Any, keys: list[str | int], type_: Any, said: str, *, from_json: bool) -> Any:
    """The key of the dictionary at `keys` with which alone the same error is raised; None: it is no dictionary."""
    holder = _value_at(value, keys)
    for key in holder if isinstance(holder, dict) else ():
        try:
            msgspec.convert(_replaced(value, keys, {key: holder[key]}), type_, str_keys=from_json)
        except msgspec.ValidationError as error:
            if _GOT.sub("", str(error)) == _GOT.sub("", said):
                return key
    return None


def _replaced(value: Any, keys: list[str | int], new: Any) -> Any:
    """A copy of a value with something else at `keys`."""
    if not keys:
        return new
    copy = value.copy()
    copy[keys[0]] = _replaced(value[keys[0]], keys[1:], new)
    return copy


def _dotted(keys: list[str | int]) -> str | None:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".") or None


def _value_at(value: Any, keys: list[str | int]) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _fields_at(type_: Any, keys: list[str | int]) -> list[str]:
    """Names of the fields of the struct that `keys` lead to, as they are written in a file."""
    info = _type_at(type_, keys)
    return [field.encode_name for field in info.fields] if isinstance(info, msgspec.inspect.StructType) else []


def _type_at(type_: Any, keys: list[str | int]) -> Any:
    """What msgspec knows of the type that `keys` lead to, without what makes it optional."""
    return _inner(_info_at(type_, keys))


def _info_at(type_: Any, keys: list[str | int]) -> Any:
    """All that msgspec knows of the type that `keys` lead to."""
    info = msgspec.inspect.type_info(type_)
    for key in keys:
        info = _inner(info)
        if isinstance(info, msgspec.inspect.StructType):
            info = next((field.type for field in info.fields if field.encode_name == key), info)
        elif isinstance(info, msgspec.inspect.DictType):
            info = info.value_type
        elif isinstance(info, msgspec.inspect.CollectionType):
            info = info.item_type
    return info


def _inner(info: Any) -> Any:
    """The struct or container inside an optional type."""
    if isinstance(info, msgspec.inspect.UnionType):
        return next((kind for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)), info)
    return info


def _line(tree: yaml.Node | None, keys: list[str | int], line: int | None) -> int | None:
    """Line of the node that `keys` lead to in a composed YAML tree, else `line`."""
    if tree is None:
        return line
    at = tree.start_mark.line
    for key in keys:
        if isinstance(tree, yaml.MappingNode):
            pair = next(((k, v) for k, v in tree.value if k.value == str(key)), None)
            if pair is None:
                break
            at, tree = pair[0].start_mark.line, pair[1]
        elif isinstance(tree, yaml.SequenceNode) and isinstance(key, int) and key < len(tree.value):
            tree = tree.value[key]
            at = tree.start_mark.line
    return int(at) + 1
