"""HTML as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser


class Text(HTMLParser):
    """The text and the tags that a browser finds in HTML; `spaced` has a space wherever a tag or white space is."""

    def __init__(self, markup):
        super().__init__()
        self.text, self.tags, self._pieces = "", [], []
        self.feed(markup)
        self.close()
        self.spaced = " ".join(" ".join(self._pieces).split())

    def handle_data(self, data):
        self.text += data
        self._pieces.append(data)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
