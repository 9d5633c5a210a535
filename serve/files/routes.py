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
from serve.files.store import Files, StoredFile
from serve.files.upload import Form, boundary_of, receive_file
from serve.http.reading import Json, Page, access_of, page_of
from serve.settings import Limits

MOST_LISTED = 10_000
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class FileRoutes:
    """What may be done with files."""

    files: Files
    book: BatchBook
    results: Results
    limits: Limits
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
        file = await receive_file(request.stream(), form, self.files, owner, self.now(), self.limits)
        return Json(file.as_dict())

    async def list(self, request: Request) -> Response:
        page = page_of(request, most=MOST_LISTED, usual=MOST_LISTED)
        access, purpose = access_of(request), request.query_params.get("purpose")
        return Json(await run_in_threadpool(self._page, page, access, purpose))

    def _page(self, page: Page, access: Access, purpose: str | None) -> dict[str, Any]:
        return page.of(self._listed(page, access, purpose))

    def _listed(self, page: Page, access: Access, purpose: str | None) -> Iterator[dict[str, Any]]:
        """Uploaded files, then results of batches, each by time."""
        kinds = ("batch", "batch_output") if page.ascending else ("batch_output", "batch")
        in_results = page.after is not None and RESULT_ID.fullmatch(page.after)
        for kind in kinds:
            first = page.after is None or bool(in_results) is (kind == "batch_output")
            passed = not first and kind == kinds[0]  # what comes after lies in the other kind
            if purpose in (None, kind) and not passed:
                yield from self._of_kind(kind, page if first else Page(None, page.limit, page.ascending), access)

    def _of_kind(self, kind: str, page: Page, access: Access) -> Iterator[dict[str, Any]]:
        if kind == "batch":
            for file in self.files.listed(access, page.after, ascending=page.ascending):
                yield file.as_dict()
            return
        after = RESULT_ID.fullmatch(page.after or "")
        if after is not None and after[2] == "output":
            yield from self._shown(after[1], access, ("error",))
        for batch in self.book.listed(access, None if after is None else after[1], ascending=page.ascending):
            yield from self._shown(batch, access, ("output", "error"))

    def _shown(self, batch_id: str, access: Access, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        for kind in kinds:
            file = self._result(f"file-{batch_id}-{kind}", access)
            if file is not None and file.lines:
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
            return FileResponse(self.files.path(file), media_type="application/octet-stream", filename=file.filename)
        return await run_in_threadpool(self._results, file, request)

    def _results(self, file: ResultFile, request: Request) -> Response:
        given = request.query_params.get("offset", "0")
        if not (given.isascii() and given.isdigit() and len(given) < 16):
            raise ApiError(400, "Invalid 'offset': expected a number of lines.", code="invalid_value", param="offset")
        headers = {"Content-Disposition": f'attachment; filename="{file.filename}"'}
        if not file.complete:
            headers |= {"X-Incomplete": "true", "X-Last-Line": str(file.lines), "Cache-Control": "no-store"}
        offset = int(given)
        wanted = _RANGE.fullmatch(request.headers.get("range", ""))
        # Of a file that grows no end is known.
        if wanted is None or not file.complete or offset or wanted[1] == wanted[2] == "":
            blocks = self.results.blocks(file, offset=offset) if offset else self.results.whole(file)
            return StreamingResponse(blocks, media_type="application/octet-stream", headers=headers)
        size = self.results.size(file)
        first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first > last:
            raise ApiError(416, f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
        headers |= {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last + 1 - first)}
        blocks = self.results.blocks(file, first=first, last=last)
        return StreamingResponse(blocks, 206, media_type="application/octet-stream", headers=headers)
