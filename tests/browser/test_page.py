"""What a user finds who opens a deployment's address in a browser: the page to try the model, and /docs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.browser.conftest import SIZES, Trained, Window, images_of, opened, served, target

sync_api = pytest.importorskip(
    "playwright.sync_api",
    reason="playwright is not installed, which drives the Chromium that CATDOG_CHROMIUM names: install the dev extra",
)
expect = sync_api.expect
expect.set_options(timeout=30_000)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, JSHandle, Locator, Page

KEY = "0123456789-abcdefghijklmnop"


@pytest.fixture(scope="module")
def keyed_server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants an API key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    with served(trained, f"api_keys_file={keys}") as address:
        yield address


@pytest.fixture
def tab(browser: Browser, server: str, screenshots: Path) -> Iterator[Window]:
    with opened(browser, server, screenshots, {}) as window:
        window.page.goto(server)
        yield window


@pytest.fixture
def page(tab: Window) -> Page:
    return tab.page


def pick(page: Page, *files: Path | tuple[str, bytes]) -> None:
    """Choose files, as the browser's dialog would."""
    given = [(file.name, file.read_bytes()) if isinstance(file, Path) else file for file in files]
    payloads = [{"name": name, "mimeType": "image/jpeg", "buffer": content} for name, content in given]
    page.get_by_label("Choose images").set_input_files(payloads)  # type: ignore[arg-type]


def card(page: Page, name: str) -> Locator:
    """The result for a file."""
    return page.get_by_role("article", name=name, exact=True)


def transfer(page: Page, file: Path) -> JSHandle:
    """What an event carries when a file is dropped."""
    return page.evaluate_handle(
        "([name, bytes]) => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/jpeg'})); return data; }",
        [file.name, list(file.read_bytes())],
    )


def assert_fits(page: Page) -> None:
    """Nothing has to be scrolled sideways."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_each_of_several_files_gets_its_label_and_probabilities_or_an_error(tab: Window, page: Page, trained: Trained):
    cat, dog = images_of(trained, 2)
    pick(page, cat, dog, ("broken.jpg", b"this is no image"))
    for file, label, other in ((cat, "cat", "dog"), (dog, "dog", "cat")):
        result = card(page, file.name)
        expect(result.get_by_role("heading")).to_have_text(label)
        expect(result.locator("dt")).to_have_text([label, other])
        expect(result.locator("dd:not(.track)").first).to_contain_text("%")
        expect(result.get_by_role("presentation")).to_be_visible()
    broken = card(page, "broken.jpg")
    expect(broken).to_contain_text("neither an image nor base64")
    expect(broken.locator("img")).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text("3 of 3 done")
    tab.screenshot("page-results")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("article")).to_have_count(0)


def test_an_image_of_something_else_is_probably_none_of_the_classes(page: Page, trained: Trained):
    (cat,) = images_of(trained, 1)
    pick(page, ("target.png", target()), cat)
    expect(card(page, "target.png")).to_contain_text("Probably none of these")
    expect(card(page, cat.name).get_by_role("heading")).to_have_text("cat")
    expect(card(page, cat.name)).not_to_contain_text("Probably none")


def test_the_switch_shows_heat_maps_also_of_images_that_are_there_already(tab: Window, page: Page, trained: Trained):
    cat, dog = images_of(trained, 2)
    pick(page, cat)
    expect(card(page, cat.name).get_by_role("heading")).to_be_visible()
    switch = page.get_by_role("switch", name="Show what the label is based on")
    switch.check()
    heat_map = card(page, cat.name).get_by_role("img", name="Heat map: the evidence for cat")
    expect(heat_map).to_be_visible()
    page.wait_for_function("image => image.naturalWidth > 0", arg=heat_map.element_handle())
    pick(page, dog)
    expect(card(page, dog.name).get_by_role("img", name="Heat map: the evidence for dog")).to_be_visible()
    tab.screenshot("page-heat-maps")
    switch.uncheck()
    expect(page.get_by_role("img", name="Heat map")).to_have_count(0)


def test_images_can_be_dropped_anywhere(page: Page, trained: Trained):
    cat, dog = images_of(trained, 2)
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer(page, cat)})
    page.dispatch_event("h1", "drop", {"dataTransfer": transfer(page, dog)})
    expect(card(page, cat.name).get_by_role("heading")).to_have_text("cat")
    expect(card(page, dog.name).get_by_role("heading")).to_have_text("dog")
    text = page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.setData('text/plain', 'no file'); return data; }"
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": text})
    expect(page.get_by_role("status")).to_have_text("There was no file in that.")


def test_an_image_can_be_pasted_from_the_clipboard(page: Page, trained: Trained):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    stream = io.BytesIO()
    with Image.open(images_of(trained, 1)[0]) as image:
        image.save(stream, "PNG")  # the one format that browsers let a page copy
    page.evaluate(
        "async bytes => navigator.clipboard.write("
        "[new ClipboardItem({'image/png': new Blob([new Uint8Array(bytes)], {type: 'image/png'})})])",
        list(stream.getvalue()),
    )
    page.keyboard.press("Control+V")
    expect(page.get_by_role("article").get_by_role("heading")).to_have_text("cat")


def test_the_keyboard_is_enough(page: Page, trained: Trained):
    (cat,) = images_of(trained, 1)
    page.on("filechooser", lambda chooser: chooser.set_files(cat))  # before the key: it takes Chromium a moment
    tab_to(page, "files")
    page.keyboard.press("Enter")
    expect(card(page, cat.name).get_by_role("heading")).to_have_text("cat")
    tab_to(page, "explain")
    page.keyboard.press("Space")
    expect(page.get_by_role("img", name="Heat map")).to_be_visible()
    tab_to(page, "clear")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article")).to_have_count(0)


def tab_to(page: Page, name: str) -> None:
    """Press Tab until an element has the focus, and shows it."""
    for _ in range(6):
        if page.evaluate("document.activeElement.id") == name:
            break
        page.keyboard.press("Tab")
    focused = page.locator(f"#{'drop' if name == 'files' else name}")
    assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid", f"{name} shows no focus"


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_it_fits_a_phone_in_the_colours_that_the_phone_asks_for(
    browser: Browser, server: str, screenshots: Path, trained: Trained, colors: str
):
    with opened(browser, server, screenshots, {}, color_scheme=colors, **SIZES["phone"]) as window:
        page = window.page
        page.goto(server)
        assert_fits(page)
        (cat,) = images_of(trained, 1)
        pick(page, cat, ("a-long-name-" * 12 + ".png", target()), ("broken.jpg", b"this is no image"))
        expect(page.get_by_role("status")).to_have_text("3 of 3 done")
        assert_fits(page)
        text, back = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        assert (brightness(text) > brightness(back)) == (colors == "dark"), (text, back)
        window.page.screenshot(path=screenshots / f"page-phone-{colors}.png", full_page=True)


def brightness(color: str) -> int:
    """Of `rgb(1, 2, 3)`."""
    return sum(int(number) for number in color[4:-1].split(","))


def test_nothing_comes_from_elsewhere_and_nothing_goes_there(
    browser: Browser, server: str, screenshots: Path, trained: Trained
):
    with opened(browser, server, screenshots, {}) as window:
        page, asked, problems = window.page, [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(server)
        pick(page, *images_of(trained, 2))
        expect(page.get_by_role("status")).to_have_text("2 of 2 done")
        page.get_by_role("link", name="API docs").click()
        expect(page.get_by_role("heading", name="CatDogClassifier 2")).to_be_visible()
        page.wait_for_load_state("networkidle")
    assert {f"{server}/predict", f"{server}/docs"} <= set(asked)
    assert [url for url in asked if not url.startswith((f"{server}/", "blob:", "data:"))] == []
    assert problems == []


def test_a_file_s_name_is_text_and_never_markup(page: Page, trained: Trained):
    (cat,) = images_of(trained, 1)
    name = "<img src=x onerror=document.title='taken'>.jpg"
    pick(page, (name, cat.read_bytes()))
    expect(card(page, name)).to_contain_text(name)
    expect(card(page, name).get_by_role("heading")).to_have_text("cat")
    assert page.title() == "CatDogClassifier"


def test_with_a_key_the_page_says_that_it_wants_one_and_then_works(
    browser: Browser, keyed_server: str, screenshots: Path, trained: Trained
):
    with opened(browser, keyed_server, screenshots, {}) as window:
        page = window.page
        page.goto(keyed_server)
        (cat,) = images_of(trained, 1)
        pick(page, cat)
        expect(card(page, cat.name)).to_contain_text("wants an API key")
        window.screenshot("page-key")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(card(page, cat.name).get_by_role("heading")).to_have_text("cat")


def test_without_a_key_the_page_asks_for_none(page: Page):
    expect(page.get_by_label("API key")).to_be_hidden()


def test_the_upload_form_in_the_docs_classifies_a_file(tab: Window, trained: Trained):
    open_docs(tab)
    response = upload(tab.page, images_of(trained, 1)[0])
    expect(response).to_contain_text('"label": "cat"')
    tab.screenshot("docs-upload")


def test_the_upload_form_in_the_docs_works_with_a_key(
    browser: Browser, keyed_server: str, screenshots: Path, trained: Trained
):
    with opened(browser, keyed_server, screenshots, {}) as window:
        open_docs(window)
        page = window.page
        page.get_by_role("button", name="Authorize").first.click()
        page.get_by_label("Value").fill(KEY)
        page.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close", exact=True).click()
        expect(upload(page, images_of(trained, 1)[0])).to_contain_text('"label": "cat"')


def open_docs(window: Window) -> None:
    window.page.goto(f"{window.address}/docs")


def upload(page: Page, file: Path) -> Locator:
    """Try out `POST /predict`; the live response."""
    operation = page.locator(".opblock").filter(has_text="/predict").filter(has_text="Classify images").first
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(file)
    operation.get_by_role("button", name="Execute").click()
    return operation.locator(".live-responses-table tbody .response-col_description").first
