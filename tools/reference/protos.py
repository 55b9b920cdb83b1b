"""The gRPC reference: services, messages and enums of a proto file, with its comments."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tools.reference.markdown import code, one_line, prose, table

# Field numbers in descriptors; paths of source locations consist of them.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_MEMBERS = 2  # fields of a message, values of an enum, methods of a service

Comments = dict[tuple[int, ...], str]


def describe(folder: Path, files: Sequence[str]) -> list[FileDescriptorProto]:
    """Compiles proto files below `folder`, comments included; raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "descriptors"
        options = [f"-I{folder}", "--include_source_info", f"--descriptor_set_out={out}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", *options, *files]
        subprocess.run(command, check=True)
        found = FileDescriptorSet()
        found.ParseFromString(out.read_bytes())
        return list(found.file)


def sections(file: FileDescriptorProto) -> Iterator[str]:
    """Yields services first, then messages and enums in the order of the file."""
    comments = {
        tuple(place.path): place.leading_comments for place in file.source_code_info.location
    }
    names = [*(each.name for each in file.message_type), *(each.name for each in file.enum_type)]
    known = {f".{file.package}.{name}" for name in names}
    for index, service in enumerate(file.service):
        yield _service(service, (_SERVICES, index), comments, known)
    places: list[tuple[int, str]] = []
    for index, message in enumerate(file.message_type):
        path = (_MESSAGES, index)
        places.append((_line(file, path), _message(message, path, comments, known)))
    for index, enum in enumerate(file.enum_type):
        path = (_ENUMS, index)
        places.append((_line(file, path), _enum(enum, path, comments)))
    yield from (text for _, text in sorted(places))


def _service(
    service: ServiceDescriptorProto, path: tuple[int, ...], comments: Comments, known: set[str]
) -> str:
    rows = [
        (
            code(method.name),
            _stream(method.client_streaming) + _type_name(method.input_type, known),
            _stream(method.server_streaming) + _type_name(method.output_type, known),
            _comment((*path, _MEMBERS, index), comments, method.name),
        )
        for index, method in enumerate(service.method)
    ]
    listing = table(("method", "request", "response", "meaning"), rows)
    return _section(service, path, comments, listing)


def _message(
    message: DescriptorProto, path: tuple[int, ...], comments: Comments, known: set[str]
) -> str:
    rows = [
        (
            str(field.number),
            code(field.name),
            _type(message, field, known),
            _comment((*path, _MEMBERS, index), comments, field.name),
        )
        for index, field in enumerate(message.field)
    ]
    listing = table(("number", "field", "type", "meaning"), rows) if rows else "No fields."
    return _section(message, path, comments, listing)


def _enum(enum: EnumDescriptorProto, path: tuple[int, ...], comments: Comments) -> str:
    rows = [
        (
            str(value.number),
            code(value.name),
            _comment((*path, _MEMBERS, index), comments, value.name),
        )
        for index, value in enumerate(enum.value)
    ]
    return _section(enum, path, comments, table(("number", "value", "meaning"), rows))


def _section(item: Any, path: tuple[int, ...], comments: Comments, listing: str) -> str:
    text = comments.get(path, "").replace("\n ", "\n").strip()
    return "\n\n".join([f"## {item.name}", prose(text), listing])


def _comment(path: tuple[int, ...], comments: Comments, name: str) -> str:
    if not comments.get(path):
        raise ValueError(f"{name} has no comment in its proto file")
    return one_line(comments[path])


def _type(message: DescriptorProto, field: FieldDescriptorProto, known: set[str]) -> str:
    entry = next((n for n in message.nested_type if field.type_name.endswith(f".{n.name}")), None)
    if entry is not None:  # a map
        key, value = (_type(entry, each, known) for each in entry.field)
        return f"map of {key} to {value}"
    if field.type_name:
        name = _type_name(field.type_name, known)
    else:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return _label(message, field) + name


def _label(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return "repeated "
    if field.proto3_optional:
        return "optional "
    if field.HasField("oneof_index"):
        return f"one of {code(message.oneof_decl[field.oneof_index].name)}: "
    return ""


def _type_name(full_name: str, known: set[str]) -> str:
    name = full_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if full_name in known else code(full_name.lstrip("."))


def _stream(streams: bool) -> str:
    return "stream of " if streams else ""


def _line(file: FileDescriptorProto, path: tuple[int, ...]) -> int:
    return next(
        place.span[0] for place in file.source_code_info.location if tuple(place.path) == path
    )
