"""What a classifier said of some images, as a part of a run's page; the images lie in the page itself."""

import base64
from dataclasses import dataclass

import numpy as np

from hgrn2.data.png import png_bytes
from hgrn2.report import page


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An image that the model was asked about."""

    image: np.ndarray
    """uint8 [H,W,1] or [H,W,3]."""
    label: str
    """Its class."""
    guess: str
    """The class that the model finds likeliest."""
    chance: float
    """The probability that the model gives it."""

    @property
    def right(self) -> bool:
        return self.guess == self.label


def answers(found: list[Answer]) -> str:
    """Markup: the images in rows, each with the model's answer, and with the true class where that is another."""
    if not found:
        return ""
    right = sum(one.right for one in found)
    legend = f"{right} of these {len(found)} held-out images are named right; with the probability of the answer."
    return page.paragraph(page.text(legend), "sub") + f'<div class="answers">{"".join(map(_one, found))}</div>'


def _one(answer: Answer) -> str:
    source = base64.b64encode(png_bytes(answer.image)).decode()
    said = page.text(f"{answer.guess} {answer.chance:.0%}")
    label = "" if answer.right else f"<br><b>{page.text(f'is {answer.label}')}</b>"
    words = page.text(f"an image of the class {answer.label}, taken for {answer.guess}")
    kind = "right" if answer.right else "wrong"
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{source}" alt="{words}">'
        f"<figcaption>{said}{label}</figcaption></figure>"
    )
