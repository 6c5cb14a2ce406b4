"""The page: one plotly, a strict policy, escaped text, all sections, written whole or not at all."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from mmlens.errors import ResultError
from mmlens.report import write_report
from mmlens.result import AttributionResult
from tests.result.examples import accuracy, attribution, faithfulness, head_score, run_info

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with every section."""
    path = write_report(
        tmp_path_factory.mktemp("report") / "r.html",
        title="A title",
        attribution=attribution(),
        comparisons=faithfulness(),
        scores=[head_score()],
        control=attribution(random=True),
        control_comparisons=faithfulness(random=True),
        accuracy=accuracy(),
        control_accuracy=accuracy(random=True),
        summary="What to know first.",
        data_file="numbers.mmlens",
    )
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Ids, tags and attributes of a page, and what its data scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.data: list[str] = []
        self._in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("src", "href") if name in found]
        self._in_data = found.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    return found


def test_plotly_is_embedded_exactly_once(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    assert len(page) < len(get_plotlyjs()) + 600_000


def test_nothing_is_linked_but_the_page_itself(page: str) -> None:
    assert all(link.startswith(("#", "data:")) for link in outline(page).links)


def test_the_policy_comes_before_every_script(page: str) -> None:
    policy = page.index("Content-Security-Policy")
    assert policy < page.index("<script") and policy < page.index("<style")
    assert "default-src &#39;none&#39;; script-src &#39;unsafe-inline&#39;" in page[policy : policy + 200]


def test_every_section_and_link_is_there(page: str) -> None:
    found = outline(page)
    sections = {"asked", "heads", "image", "evidence", "control", "tokens", "provenance", "cite"}
    assert sections <= set(found.ids) and len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} == sections


def test_every_figure_has_its_data(page: str) -> None:
    found = outline(page)
    figures = [name for name in found.ids if name.startswith("figure-") and not name.endswith("-data")]
    assert len(figures) == 10 and {f"{name}-data" for name in figures} <= set(found.ids)
    assert len(found.data) == 10 and all("layout" in json.loads(data) for data in found.data)


def test_what_a_reader_needs_is_in_the_text(page: str) -> None:
    for text in (
        "What to know first.",
        "arXiv 2509.17588",
        "mmlens attribute cat.png",
        "Result.load(&#39;numbers.mmlens&#39;)",
        "9f2c5d1e77aa-scenes",
        "9f2c5d1e77aa-random weights",
        "circle against square",
        "version: torch",
    ):
        assert text in page, text


def hostile() -> AttributionResult:
    """Everything that others can write is an attack."""
    one = attribution()
    n = one.n
    data = one.data.assign_attrs(metric=EVIL, unit=EVIL, baseline=EVIL, design=EVIL, estimator=EVIL)
    data["token"].values[:, 0] = EVIL
    data["role"].values[:, 0] = EVIL
    texts = {name: ("sample", [EVIL] * n) for name in ("question", "answer", "foil", "model_answer")}
    data = data.assign_coords(texts | {"sample": [f"{EVIL}{i}" for i in range(n)]})
    return AttributionResult(data=data, info=run_info(EVIL))


def test_hostile_text_is_text(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", title=EVIL, attribution=hostile(), summary=EVIL, command=EVIL)
    page = path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page and "{{ 7*7 }}" in page
    assert len(re.findall(r"<script\b", page)) == len(re.findall(r"</script>", page)) == 2 + 3


def test_the_smallest_report_has_no_empty_sections(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", title="t", attribution=attribution(1, drawings=False))
    found = outline(path.read_text(encoding="utf-8"))
    assert not {"image", "control"} & set(found.ids)
    assert [name for name in found.ids if name.endswith("-data")] == [
        "figure-map-0-data",
        "figure-fit-0-data",
    ]


def test_more_samples_than_fit_are_mentioned(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", title="t", attribution=attribution(14))
    page = path.read_text(encoding="utf-8")
    assert "The first 12 of 14 samples" in page and "6 more samples" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accuracy": accuracy(random=True)}, "belongs to weights"),
        ({"comparisons": faithfulness(random=True)}, "belongs to weights"),
        ({"control": attribution()}, "controls nothing"),
        ({"control_accuracy": accuracy(random=True)}, "without the control"),
        ({"control": attribution(random=True), "control_accuracy": accuracy()}, "the control to"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(given: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=message):
        write_report(tmp_path / "r.html", title="t", attribution=attribution(), **given)
    assert os.listdir(tmp_path) == []


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    data = attribution().data.copy(deep=True)
    data["cell_box"].values[:] = float("nan")
    broken = AttributionResult(data=data, info=run_info())
    with pytest.raises(ResultError, match="no boxes"):
        write_report(path, title="t", attribution=broken)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["r.html"]


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="does not exist"):
        write_report(tmp_path / "no" / "r.html", title="t", attribution=attribution(1, drawings=False))
