"""The paths under `/v1/files`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.access.access import Access
from serve.batches.book import BatchBook
from serve.errors import ApiError, not_found
from serve.files.results import RESULT_ID, ResultFile, Results
from serve.files.store import FILE_ID, Files, StoredFile
from serve.files.upload import Form, Uploads, boundary_of
from serve.http.reading import Json, Page, access_of, page_of

MOST_LISTED = 10_000
RESULTS = "batch_output"
"""The purpose of files of results."""
OCTETS = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class FileRoutes:
    """What may be done with files."""

    files: Files
    book: BatchBook
    results: Results
    uploads: Uploads
    now: Callable[[], float] = time.time

    def routes(self) -> list[Route]:
        return [
            Route("/files", self.create, methods=["POST"]),
            Route("/files", self.list, methods=["GET"]),
            Route("/files/{id}", self.retrieve, methods=["GET"]),
            Route("/files/{id}", self.delete, methods=["DELETE"]),
            Route("/files/{id}/content", self.content, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        form = Form(boundary_of(request.headers.get("content-type", "")))
        owner = access_of(request).owner
        file = await self.uploads.receive(request.stream(), form, owner, self.now())
        return Json(file.as_dict())

    async def list(self, request: Request) -> Response:
        page = page_of(request, _is_id, most=MOST_LISTED, usual=MOST_LISTED)
        access, purpose = access_of(request), request.query_params.get("purpose")
        return Json(await run_in_threadpool(self._page, page, access, purpose))

    def _page(self, page: Page, access: Access, purpose: str | None) -> dict[str, Any]:
        return page.of(self._listed(page, access, purpose))

    def _listed(self, page: Page, access: Access, purpose: str | None) -> Iterator[dict[str, Any]]:
        """Uploaded files, then results of batches, each by time."""
        kinds = (False, True) if page.ascending else (True, False)
        in_results = page.after is not None and bool(RESULT_ID.fullmatch(page.after))
        for results in kinds:
            first = page.after is None or in_results is results
            passed = not first and results is kinds[0]  # what comes after lies in the other kind
            wanted = purpose is None or (purpose == RESULTS) is results
            if not wanted or passed:
                continue
            part = page if first else Page(None, page.limit, page.ascending)
            yield from self._results_listed(part, access) if results else self._uploads(part, access, purpose)

    def _uploads(self, page: Page, access: Access, purpose: str | None) -> Iterator[dict[str, Any]]:
        for file in self.files.listed(access, page.after, ascending=page.ascending):
            if purpose in (None, file.purpose):
                yield file.as_dict()

    def _results_listed(self, page: Page, access: Access) -> Iterator[dict[str, Any]]:
        after = RESULT_ID.fullmatch(page.after or "")
        if after is not None and after[2] == "output":
            yield from self._shown(after[1], access, ("error",))
        for batch in self.book.listed(access, None if after is None else after[1], ascending=page.ascending):
            yield from self._shown(batch, access, ("output", "error"))

    def _shown(self, batch_id: str, access: Access, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        batch = self.book.live(batch_id, access)
        files = [] if batch is None else [file for kind in kinds if (file := ResultFile(batch, kind)).lines]
        deleted = self.book.deleted_files(batch_id) if files else frozenset()
        for file in files:
            if file.kind not in deleted:
                yield file.as_dict(self.results.size(file, at_once=False))

    def _result(self, file_id: str, access: Access) -> ResultFile | None:
        """A batch's results as a file; None where there are none that may be seen."""
        found = RESULT_ID.fullmatch(file_id)
        if found is None:
            return None
        batch = self.book.live(found[1], access)
        if batch is None or found[2] in self.book.deleted_files(batch.id):
            return None
        return ResultFile(batch, found[2])

    def _found(self, file_id: str, access: Access) -> StoredFile | ResultFile:
        """The file of this id.

        Raises:
            ApiError: there is none that may be seen.
        """
        file = self._result(file_id, access) or self.files.find(file_id, access)
        if file is None:
            raise not_found("file", file_id)
        return file

    async def retrieve(self, request: Request) -> Response:
        return Json(await run_in_threadpool(self._object, request.path_params["id"], access_of(request)))

    def _object(self, file_id: str, access: Access) -> dict[str, Any]:
        file = self._found(file_id, access)
        return file.as_dict(self.results.size(file)) if isinstance(file, ResultFile) else file.as_dict()

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["id"]
        await run_in_threadpool(self._delete, file_id, access_of(request))
        return Json({"id": file_id, "object": "file", "deleted": True})

    def _delete(self, file_id: str, access: Access) -> None:
        file = self._found(file_id, access)
        if isinstance(file, StoredFile):
            self.files.remove(file)
        elif not file.complete:
            raise ApiError(409, "The batch still writes this file; cancel the batch first.", code="file_in_use")
        else:
            self.book.delete_file(file.batch.id, file.kind)

    async def content(self, request: Request) -> Response:
        file = await run_in_threadpool(self._found, request.path_params["id"], access_of(request))
        if isinstance(file, StoredFile):
            if _wanted(request, file.bytes) is None:  # or what is meant by it is for others to say
                request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
            return FileResponse(self.files.path(file), media_type=OCTETS, filename=file.filename)
        return await run_in_threadpool(self._results, file, request)

    def _results(self, file: ResultFile, request: Request) -> Response:
        given = request.query_params.get("offset", "0")
        if not (given.isascii() and given.isdigit() and len(given) < 16):
            raise ApiError(400, "Invalid 'offset': expected a number of lines.", code="invalid_value", param="offset")
        headers = {"Content-Disposition": f'attachment; filename="{file.filename}"'}
        if not file.complete:
            headers |= {"X-Incomplete": "true", "X-Last-Line": str(file.lines), "Cache-Control": "no-store"}
        offset = int(given)
        if not file.complete or offset:  # of a file that grows no end is known
            return self._streamed(self.results.blocks(file, offset=offset), 200, headers)
        headers["Accept-Ranges"] = "bytes"
        size = self.results.size(file) if "range" in request.headers else 0
        wanted = _wanted(request, size)
        if wanted is None:
            return self._streamed(self.results.blocks(file), 200, headers)
        first, last = wanted
        headers |= {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last + 1 - first)}
        return self._streamed(self.results.blocks(file, first=first, last=last), 206, headers)

    def _streamed(self, blocks: Iterator[bytes], status: int, headers: dict[str, str]) -> Response:
        return StreamingResponse(blocks, status, media_type=OCTETS, headers=headers)


def _is_id(text: str) -> bool:
    return bool(FILE_ID.fullmatch(text) or RESULT_ID.fullmatch(text))


def _wanted(request: Request, size: int) -> tuple[int, int] | None:
    """The first and the last byte that a request asks for, of so many; None: all, where it names no one range.

    Raises:
        ApiError: there are no such bytes.
    """
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None or wanted[1] == wanted[2] == "":
        return None
    first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first > last:
        raise ApiError(416, f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return first, last
