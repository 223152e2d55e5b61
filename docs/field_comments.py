"""For the API reference: a field's docstring is the comment that stands behind it.

alpha: float = 0.01  # inner rate
"""

import re
from typing import Any

from griffe import Attribute, Docstring, Extension

COMMENT = re.compile(r"  # (?!noqa|type:)(.+?)(?:  #.*)?$")


class FieldComments(Extension):
    """Gives the fields of classes their comments as docstrings."""

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """A field with a comment on its last line, and without a docstring."""
        if attr.docstring or not attr.parent or not attr.parent.is_class or not attr.lines:
            return
        if comment := COMMENT.search(attr.lines[-1]):
            attr.docstring = Docstring(comment[1], parent=attr)
