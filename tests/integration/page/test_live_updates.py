"""Predictions while the user drags: in order, announced once."""

from playwright.sync_api import expect
from ui_page import assert_shows, gallery_file, move_slider, predict_both

from benchmarks.page import WATCH, drag

# Delays each response by 0 to 300 ms, and counts the requests without a response.
DELAY = """() => {
  const { fetch } = window;
  let state = 1;
  let pending = 0;
  const count = (change) => {
    pending += change;
    document.documentElement.dataset.pending = pending;
  };
  window.fetch = async (...request) => {
    count(1);
    const response = await fetch(...request).catch((error) => {
      count(-1);
      throw error;
    });
    state = (state * 48271) % 2147483647;
    await new Promise((resolve) => setTimeout(resolve, (300 * state) / 2147483647));
    count(-1);
    return response;
  };
}"""


def test_dragging_shows_predictions_in_order(page):
    """How many a second, `make pictures` measures."""
    page.evaluate(WATCH)
    drag(page)
    end = page.locator("#rotation").input_value()
    expect(page.locator("#prediction")).to_have_attribute("data-rotation", end, timeout=60_000)
    angles = [angle for _, angle in page.evaluate("window.shown")]
    assert angles == sorted(angles)
    assert angles[-1] == float(end) > 350
    assert len(angles) >= 3


def test_an_older_response_never_replaces_a_newer_one(page, client):
    page.evaluate(DELAY)
    page.evaluate(WATCH)
    drag(page)
    expect(page.locator("#prediction")).to_have_attribute("data-rotation", page.locator("#rotation").input_value())
    angles = [angle for _, angle in page.evaluate("window.shown")]
    assert angles == sorted(angles)
    assert len(angles) >= 3
    for name in ("trouser", "bag", "noise", "dress", "sandal"):  # faster than their predictions
        page.get_by_role("radio", name=name, exact=True).check()
    sandal = predict_both(client, gallery_file("sandal"))
    assert_shows(page, *sandal)
    expect(page.locator("html")).to_have_attribute("data-pending", "0")
    assert_shows(page, *sandal)
    expect(page.locator("#network-input")).to_have_attribute("aria-label", "sandal: 28 by 28 pixels")


def test_the_prediction_is_announced_once_after_changes(page, client):
    _, found = predict_both(client, gallery_file("ankle boot"))
    expect(page.locator("#announcement")).to_contain_text(
        f"ankle boot {100 * found['confidence']:.1f} %. Answers. All 100 masks predict ankle boot."
    )
    page.clock.install(time=0)
    page.clock.pause_at(60_000)
    page.evaluate(
        """() => {
          window.announcements = 0;
          const observer = new MutationObserver(() => { window.announcements += 1; });
          observer.observe(document.getElementById("announcement"), { childList: true });
        }"""
    )
    for angle in range(10, 100, 10):
        move_slider(page, "rotation", angle)
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", str(angle))
    assert page.evaluate("window.announcements") == 0
    page.clock.run_for(2000)
    assert page.evaluate("window.announcements") == 1
    expect(page.locator("#announcement")).to_contain_text(page.locator("#sentence").inner_text())
