"""HTML as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser


class Text(HTMLParser):
    """The text and the tags that a browser finds in HTML."""

    def __init__(self, markup):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(markup)
        self.close()

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
