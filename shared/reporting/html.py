"""HTML pages of one file that open offline: templates, with everything from outside escaped."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

BASE = Path(__file__).parent / "templates"


def render(template: Path, **values: Any) -> str:
    """Fill a template in; it may extend `base.html.j2` and import its macros.

    Text is escaped; in scripts values are written with `|tojson`, which escapes `<`, `>` and `&`.

    Args:
        template: File of the template.
        values: Its variables, each of which must be given.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, BASE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def embedded(picture: Image.Image, kind: str = "JPEG") -> str:
    """Encode a picture as a `data:` URL.

    Args:
        picture: RGB.
        kind: JPEG or PNG.
    """
    stream = io.BytesIO()
    picture.save(stream, format=kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64_text(stream.getvalue())}"


def base64_text(content: bytes) -> str:
    """Bytes as ASCII."""
    return base64.b64encode(content).decode()
