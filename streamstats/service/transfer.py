"""What the client sends and gets: arrays as files, events of a stream, files by their names, and refusals."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, TypeAdapter, ValidationError

from .. import __version__
from ..errors import DataError, ServiceError, StreamstatsError, UsageError
from ..floats import NARROW
from ..storage.plain_tensors import plain_tensor_bytes

if TYPE_CHECKING:
    import httpx

Model = TypeVar("Model", bound=BaseModel)
Validated = TypeVar("Validated")
LONGEST_SHOWN = 200
"""Characters of an answer that is not ours."""


class RefusedError(UsageError):
    """The service refuses the request; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`. Raises `DataError` for a name that leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the service names a file {name!r}, which is outside {folder}; do not trust this service")
    return path


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kind, content, number) of each server-sent event."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "data" in fields:
                yield fields.get("event", "message"), _data_of(fields["data"]), fields.get("id", "")
            fields = {}


def _data_of(text: str) -> dict[str, Any]:
    """What an event says. Raises `ServiceError` for anything but a JSON object."""
    try:
        return TypeAdapter(dict[str, Any]).validate_json(text)
    except ValidationError as error:
        raise ServiceError(
            f"an event is {text[:LONGEST_SHOWN]!r}; expected a JSON object; check that this is the address of a service"
        ) from error


def file_of(array: npt.NDArray[Any]) -> bytes:
    """A `.npy` file, or safetensors for bfloat16 and float8, which `.npy` cannot name."""
    if array.dtype.newbyteorder("=") in NARROW:
        return plain_tensor_bytes(array)
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def checked(answer: httpx.Response) -> httpx.Response:
    """`answer`, if it says success. Raises as `failure_of` says."""
    if not answer.is_success:
        raise failure_of(answer)
    return answer


def view_of(model: type[Model], answer: httpx.Response) -> Model:
    """What `answer` says, as a `model`. Raises `ServiceError` for anything else, which is not one of our answers."""
    return _validated(model.model_validate, answer)


def views_of(model: type[Model], answer: httpx.Response) -> list[Model]:
    """What `answer` says, as a list of `model`. Raises `ServiceError` for anything else."""
    return _validated(TypeAdapter(list[model]).validate_python, answer)  # type: ignore[valid-type]


def object_of(answer: httpx.Response) -> dict[str, Any]:
    """What `answer` says, as a JSON object. Raises `ServiceError` for anything else."""
    return _validated(TypeAdapter(dict[str, Any]).validate_python, answer)


def _validated(validate: Callable[[Any], Validated], answer: httpx.Response) -> Validated:
    try:
        return validate(_content_of(answer))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ServiceError(
            f"{answer.url} answered with JSON that version {__version__} does not know: "
            f"{f'{place}: ' if place else ''}{first['msg']}; check that this is the address of a service, and that it "
            "has the version of the client"
        ) from error


def _content_of(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise ServiceError(
            f"{answer.url} answered with something other than JSON; check that this is the address of a service"
        ) from error


def failure_of(answer: httpx.Response) -> StreamstatsError:
    """What an answer without success means for the caller: `ServiceError` from 500 on, else `RefusedError`."""
    try:
        message = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # not one of our answers: a proxy's
        message = answer.text[:LONGEST_SHOWN]
    status = answer.status_code
    if status >= 500:
        return ServiceError(f"the service cannot meet the request (status {status}): {message}")
    return RefusedError(f"the service refuses the request (status {status}): {message}", status)
