"""What a classifier said of some pictures, as a part of a run's page; the pictures lie in the page itself."""

import base64
from dataclasses import dataclass

import numpy as np

from hgrn2.data.png import png_bytes
from hgrn2.report import page


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A picture that the model was asked about."""

    picture: np.ndarray
    """uint8 [H,W,1] or [H,W,3]."""
    truth: str
    """Its class."""
    guess: str
    """The class that the model finds likeliest."""
    chance: float
    """The probability that the model gives it."""

    @property
    def right(self) -> bool:
        return self.guess == self.truth


def answers(found: list[Answer]) -> str:
    """Markup: the pictures in rows, each with the model's answer, and with the truth where that is another."""
    if not found:
        return ""
    right = sum(one.right for one in found)
    legend = f"{right} of these {len(found)} held-out pictures are named right; with the probability of the answer."
    return page.paragraph(page.text(legend), "sub") + f'<div class="answers">{"".join(map(_one, found))}</div>'


def _one(answer: Answer) -> str:
    source = base64.b64encode(png_bytes(answer.picture)).decode()
    said = page.text(f"{answer.guess} {answer.chance:.0%}")
    truth = "" if answer.right else f"<br><b>{page.text(f'is {answer.truth}')}</b>"
    words = page.text(f"a picture of the class {answer.truth}, taken for {answer.guess}")
    kind = "right" if answer.right else "wrong"
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{source}" alt="{words}">'
        f"<figcaption>{said}{truth}</figcaption></figure>"
    )
