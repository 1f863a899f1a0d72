"""Read an HTML page in tests."""

from html.parser import HTMLParser

UNTRUSTED = "<img src=x onerror='alert(1)'>&\"$\\frac{$ 患者 \u202e"
UNTRUSTED_SHOWN = UNTRUSTED.replace("\u202e", r"\u202e")  # the character would reverse what follows


class PageReader(HTMLParser):
    """The tags of a page with their attributes, and its text: ``raw``, or with single spaces also where a tag is."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.raw = "".join(self.pieces)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def check_stands_alone(page: str) -> None:
    """The page loads nothing, runs nothing, forbids both, and each image has a description."""
    read = PageReader(page)
    assert ("html", {"lang": "en"}) in read.tags
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "form"}
    for _, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in page
    policy = [meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert all(len(image["alt"] or "") > 20 for image in read.all("img"))
