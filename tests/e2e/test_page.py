"""The page of `promptmill serve`, in a real browser: what a person sees and does there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.errors import LineError
from jobs.lines.line import Defaults, Job
from jobs.record import Choice
from jobs.redis.connect import connect
from jobs.store.store import Store
from serve.access.keyfile import Key, changed_keys, digest
from submit.schedule.add import ScheduleOrder, add_schedule
from submit.schedule.cron import Cron
from submit.schedule.store import Schedules
from submit.status.pool_pause import paused_workers
from submit.upload.submitter import Order
from tests.browser import PATIENCE_MS, PHONE, chromium, tab
from tests.pool import echo, make_batch, prompts, publish, work
from tests.programs import needs
from tests.servers import running_server
from tests.serving import MODEL, quick_worker, serving

pytestmark = needs("chromium")
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A Redis of this module's own."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="module")
def address(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a server, with a worker for MODEL."""
    with quick_worker(redis_url), serving(redis_url, tmp_path_factory.mktemp("files")) as served:
        yield served.url.removesuffix("v1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with tab(browser) as made:
        yield made


@pytest.fixture
def pool(redis_url: str) -> Iterator[Store]:
    """The pool behind the page."""
    connection = connect(redis_url)
    yield Store(connection)
    connection.close()


def third_fails(job: Job) -> list[Choice]:
    if job.index % 3 == 0:
        raise LineError("context_length_exceeded", "prompt", "it is too long")
    return echo(job)


def test_a_batch_is_made_checked_and_watched(page: Page, address: str) -> None:
    """Pasted lines are checked, the bad ones named and left out, and the batch is done without a reload."""
    page.goto(address)
    page.get_by_role("link", name="New batch").first.click()
    page.get_by_label("Or paste lines").fill('{"id": "one", "prompt": "x"}\n{"id": "two", "promt": "y"}\nnothing')
    expect(page.get_by_label("Model of lines that name none")).to_have_value(MODEL)
    page.get_by_label("Name", exact=True).fill("by hand")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("heading", name="2 bad lines of 3")).to_be_visible()
    expect(page.get_by_text("is not a field of a line; did you mean 'prompt'?")).to_be_visible()
    submit = page.get_by_role("button", name="Submit 1 line")
    expect(submit).to_be_disabled()
    page.get_by_label("Leave bad lines out").check()
    submit.click()
    expect(page.get_by_role("heading", name="by hand")).to_be_visible()
    expect(page.locator("h1 + .chip")).to_have_text("completed")
    expect(page.get_by_text("100% · 3 of 3 lines, 2 failed")).to_be_visible()
    expect(page.get_by_text("answer to one")).to_be_visible()


def test_a_dropped_file_is_uploaded(page: Page, address: str, tmp_path: Path) -> None:
    """A bad model or value is told before anything is made."""
    file = tmp_path / "night.jsonl"
    file.write_text("".join(json.dumps({"id": f"n-{number}", "prompt": "x"}) + "\n" for number in range(2500)))
    page.goto(f"{address}#/new")
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text(re.compile("night.jsonl, .* kB"))).to_be_visible()
    page.get_by_text("For lines that do not say it themselves").click()
    page.get_by_label("Temperature").fill("500")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("alert")).to_contain_text("temperature")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Check").click()
    page.get_by_role("button", name="Submit 2,500 lines").click()
    expect(page.get_by_text("100% · 2,500 of 2,500 lines")).to_be_visible()
    expect(page.get_by_text("temperature 0.5")).to_be_visible()


def test_records_are_searched_filtered_and_read(page: Page, address: str, pool: Store) -> None:
    """By text and by how they ended, also by pressing a bar of the plots; one opens whole, and the batch downloads."""
    batch_id = make_batch(pool, prompts(60), name="to be read")
    work(pool, batch_id, answer=third_fails)
    page.goto(f"{address}#/batch/{batch_id}")
    records = page.locator(".records tbody tr")
    expect(records).to_have_count(50)
    page.get_by_role("button", name="Show more").click()
    expect(records).to_have_count(60)
    expect(page.get_by_role("img", name=re.compile("^Length: median 20"))).to_be_visible()
    page.locator(".count", has_text="context_length_exceeded").click()
    expect(records).to_have_count(20)
    page.get_by_label("How they ended").select_option("stop eos")
    page.get_by_label("Search records").fill("to row-17")
    expect(records).to_have_count(1)
    page.get_by_role("button", name="row-17").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Once upon a time")
    expect(dialog).to_contain_text("answer to row-17")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.get_by_text("Download", exact=True).first.click()
    page.get_by_label("Format").select_option("openai")
    page.get_by_label("Which lines").select_option("failed")
    with page.expect_download() as fetched:
        page.get_by_role("link", name="Download").click()
    lines = [orjson.loads(line) for line in fetched.value.path().read_bytes().splitlines()]
    assert len(lines) == 20
    assert lines[0]["custom_id"] == "row-0"


def test_a_batch_is_steered_live(page: Page, address: str, pool: Store) -> None:
    """What it does shows by itself; it is paused, moved, cancelled, retried and removed."""
    batch_id = make_batch(pool, prompts(10), name="steered", start_in=3600.0)
    page.goto(f"{address}#/batch/{batch_id}")
    chip = page.locator("h1 + .chip")
    expect(chip).to_have_text("waiting")
    page.get_by_role("button", name="Pause").click()
    expect(chip).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(chip).to_have_text("waiting")
    page.get_by_label("Priority").select_option("high")
    expect(page.get_by_text("Priority: high.")).to_be_visible()
    publish(pool, "mini.7", in_flight=[
        {"batch_id": batch_id, "index": 4, "id": "row-4", "prompt_tokens": 90, "prefilled": 45},
        {"batch_id": batch_id, "index": 5, "id": "row-5", "prompt_tokens": 9, "prefilled": 9, "completion_tokens": 33},
    ])  # fmt: skip
    expect(page.get_by_role("row", name=re.compile("row-4 reading the prompt .*45 of 90"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("row-5 generating .*33"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Keep it").click()
    assert pool.batch(batch_id).status == "in_progress"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the batch").click()
    expect(chip).to_have_text("cancelled")
    assert pool.batch(batch_id).priority == "high"
    page.get_by_role("button", name="Retry failed lines").click()
    expect(page.get_by_text("The failed lines run again.")).to_be_visible()
    work(pool, batch_id)
    expect(page.get_by_text("100% · 10 of 10 lines")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Remove the batch").click()
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    expect(page.get_by_text("steered")).to_have_count(0)


def test_the_pool_and_its_batches_at_a_glance(page: Page, address: str, pool: Store) -> None:
    """Workers with what they do, batches that are searched; and nothing is markup that somebody else wrote."""
    publish(
        pool, "studio.1", state="busy", models=["org/big-70b"], tokens_per_second=512.0, occupancy=0.75,
        memory_bytes=10**9, memory_limit_bytes=10**10, speeds=[500.0] * 60,
    )  # fmt: skip
    make_batch(pool, prompts(2), name="<img src=x onerror=alert(1)>")
    page.goto(address)
    row = page.get_by_role("row", name=re.compile("studio.1"))
    for text in ("busy", "big-70b", "1.0 GB", "512", "75%"):
        expect(row).to_contain_text(text)
    row.get_by_role("button", name="Pause studio.1").click()
    page.get_by_role("button", name="Pause the worker").click()
    expect(row.get_by_role("button", name="Resume studio.1")).to_be_visible()
    assert paused_workers(pool) == ["studio.1"]
    row.get_by_role("button", name="Resume studio.1").click()
    expect(row.get_by_role("button", name="Pause studio.1")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Tokens per second over the last 15 minutes"))).to_be_visible()
    page.get_by_label("Search batches").fill("ONERROR")
    expect(page.get_by_role("link", name="<img src=x onerror=alert(1)>")).to_be_visible()
    page.get_by_label("Search batches").fill("there is none of this name")
    expect(page.get_by_text("No batch fits.")).to_be_visible()


def test_schedules_are_shown_and_run(page: Page, address: str, pool: Store) -> None:
    """When each runs next, and its batch once it is run by hand."""
    order = Order(defaults=Defaults({"model": MODEL}))
    add_schedule(pool, ScheduleOrder("nightly", Cron("0 2 * * *", "UTC"), order), [{"id": "s", "prompt": "x"}])
    page.goto(f"{address}#/schedules")
    card = page.get_by_label("Schedule nightly")
    expect(card).to_contain_text(re.compile("Next run .*, in "))
    expect(card).to_contain_text("0 2 * * * (UTC)")
    card.get_by_role("button", name="Run now").click()
    expect(page.get_by_text("100% · 1 of 1 line")).to_be_visible()
    page.get_by_role("link", name="Schedules").click()
    expect(card).to_contain_text("submitted")


def test_a_schedule_is_added_and_paused(page: Page, address: str, pool: Store) -> None:
    """Its times show while they are typed, and what is wrong with them; its lines are checked as a batch's."""
    page.goto(f"{address}#/schedules")
    page.get_by_role("link", name="New schedule").click()
    page.get_by_label("Name of the schedule").fill("weekly")
    page.get_by_label("Time zone").fill("Asia/Tokyo")
    page.get_by_label("When, as cron").fill("99 2 * * 1")
    expect(page.get_by_text("99 is out of range 0-59")).to_be_visible()
    page.get_by_label("When, as cron").fill("0 2 * * 1")
    expect(page.get_by_text(re.compile("^Runs .*, then .*, then "))).to_be_visible()
    page.get_by_label("Or paste lines").fill('{"id": "one", "prompt": "x"}')
    expect(page.get_by_label("Model of lines that name none")).to_have_value(MODEL)
    page.get_by_text("For lines that do not say it themselves").click()
    page.get_by_label("Other values").fill('{"top_p": 0.9}')
    page.get_by_role("button", name="Check").click()
    page.get_by_role("button", name="Add the schedule of 1 line").click()
    card = page.get_by_label("Schedule weekly")
    expect(card).to_contain_text("0 2 * * 1 (Asia/Tokyo) · pasted.jsonl, 1 line")
    card.get_by_role("button", name="Pause").click()
    expect(card).to_contain_text("No run begins by itself until it is resumed.")
    assert Schedules(pool.connection).get("weekly").paused
    card.get_by_role("button", name="Resume").click()
    expect(card).to_contain_text("Next run")


def test_on_a_phone_and_by_keyboard(browser: Browser, address: str, pool: Store) -> None:
    """Nothing is wider than the screen, in the dark too; the way to a batch needs no mouse."""
    batch_id = make_batch(pool, prompts(3), name="a-name-that-is-rather-long-" * 4)
    work(pool, batch_id)
    with tab(browser, viewport=PHONE, color_scheme="dark", has_touch=True) as page:
        for path in ("", f"#/batch/{batch_id}", "#/new", "#/schedules", "#/schedules/new"):
            page.goto("about:blank")
            page.goto(address + path)
            expect(page.locator("main h1")).to_be_visible()
            if path.startswith("#/batch"):
                expect(page.get_by_text("answer to row-1")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", dark))) < 60
    with tab(browser) as page:
        page.goto(address)
        link = page.get_by_role("link", name="a-name-that-is-rather-long").first
        expect(link).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        for _ in range(60):
            page.keyboard.press("Tab")
            if link.evaluate("link => link === document.activeElement"):
                break
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="a-name-that-is-rather-long")).to_be_visible()


def test_with_keys_the_page_asks_for_one(browser: Browser, redis_url: str, tmp_path: Path) -> None:
    """A wrong one is refused in words; the right one stays over a reload, until its owner leaves."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        keys.append(Key("ann", digest("ann-secret"), 0.0))
    flags = ("--keys", str(path))
    with serving(redis_url, tmp_path / "files", *flags) as served, tab(browser) as page:
        page.goto(served.url.removesuffix("v1"))
        page.get_by_label("Key").fill("wrong-secret")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("unknown")
        page.get_by_label("Key").fill("ann-secret")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Pool")).to_be_visible()
        expect(page.get_by_text("No batches yet")).to_be_visible()
        expect(page.get_by_role("link", name="Schedules")).to_have_count(0)
        assert "secret" not in page.evaluate("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})")
        page.reload()
        expect(page.get_by_role("heading", name="Pool")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("heading", name="Log in")).to_be_visible()
