"""Schemathesis: requests made up from OpenAI's published description, good ones and bad ones, and whether the answers
are as it describes them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.clients.client import FAILED, PASSED, Check, Client, Place, Suite
from tests.clients.running import PROGRAMS, run_command, short

SUITE = Suite(
    "openai-openapi",
    "https://github.com/openai/openai-openapi",
    "f85dbe223d40e1a31cba812ab2d755c7e98a92a3",
    ("/openapi.json",),
)
OPERATIONS = {
    "/files": ("get", "post"),
    "/files/{file_id}": ("get", "delete"),
    "/files/{file_id}/content": ("get",),
    "/batches": ("get", "post"),
    "/batches/{batch_id}": ("get",),
    "/batches/{batch_id}/cancel": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
    "/chat/completions": ("post",),
    "/completions": ("post",),
}
NULL = {
    "OpenAIFile": ("expires_at", "status_details"),
    "Batch": (
        "model", "errors", "output_file_id", "error_file_id", "in_progress_at", "expires_at", "finalizing_at",
        "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
    ),
    "ListFilesResponse": ("first_id", "last_id"),
    "ListBatchesResponse": ("first_id", "last_id"),
}  # fmt: skip
"""Fields that may be null: OpenAI's own examples in the same file say so, and its description does not."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
)
EXAMPLES = 60
SEED = 1
SECONDS = 1500.0


def description(published: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's description of the paths that are served, with the errors, nulls and bytes that it lacks."""
    paths = {
        path: {method: published["paths"][path][method] for method in methods} for path, methods in OPERATIONS.items()
    }
    error = {
        "description": "Error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
    }
    for methods in paths.values():
        for operation in methods.values():
            operation["responses"] |= {"4XX": error, "504": error}
    content = paths["/files/{file_id}/content"]["get"]["responses"]["200"]
    content["content"] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    for name, fields in NULL.items():
        properties = published["components"]["schemas"][name]["properties"]
        for field in fields:
            properties[field] = {"anyOf": [properties[field], {"type": "null"}]}
    return {**published, "paths": paths}


def run(place: Place) -> list[Check]:
    described = place.folder / "openapi.json"
    described.write_text(json.dumps(description(json.loads((place.suite / "openapi.json").read_bytes()))))
    report = place.folder / "junit.xml"
    command = [
        str(place.python.with_name("schemathesis")), "run", str(described), f"--url={place.url}",
        f"--header=Authorization: Bearer {place.key}", f"--checks={','.join(CHECKS)}", f"--max-examples={EXAMPLES}",
        f"--seed={SEED}", "--generation-deterministic", "--continue-on-failure", "--request-timeout=20", "--no-color",
        f"--report-junit-path={report}",
    ]  # fmt: skip
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(PROGRAMS)}
    done = run_command(place, command, place.folder, hooks, SECONDS)
    if not report.exists():
        return [Check("schemathesis", FAILED, short(done.stderr or done.stdout))]
    return list(_of_report(report))


def _of_report(report: Path) -> Iterator[Check]:
    """A check per operation."""
    for case in ET.parse(report).getroot().iter("testcase"):
        problems = [
            child.get("message", "") or (child.text or "") for child in case if child.tag in ("failure", "error")
        ]
        yield Check(case.get("name", ""), FAILED if problems else PASSED, short("; ".join(problems)))


CLIENT = Client(
    name="schemathesis",
    version="4.32.5",
    what=f"OpenAI's description ({SUITE.revision[:8]}) of {sum(map(len, OPERATIONS.values()))} operations",
    run=run,
    packages=("schemathesis==4.32.5",),
    suite=SUITE,
)
