"""Model cards of transformers' classes: written with every saved model, and with one that is pushed to a hub."""

from pathlib import Path
from typing import Any

from hgrn2.files import read_text, write_text
from hgrn2.models.card import FILE, Trained, card, write_card

PLACEHOLDER = "This model card has been automatically generated."
"""Stands in the card that transformers makes where a hub has none."""


class WithCard:
    """What a `PreTrainedModel` of ours does besides when it is saved."""

    config: Any
    _trained: Trained | None = None
    """What `hgrn2 convert` knows of the run."""

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and README.md beside it, unless the folder has one."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        folder = Path(save_directory)
        if is_main_process and folder.is_dir():
            write_card(folder, settings_of(self.config), "transformers", trained=self._trained)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """The last step of every push to a hub: where the library has made up a card, ours takes its place. One that
        the hub has already is its author's, and stays."""
        path = Path(working_dir) / FILE
        if path.is_file() and PLACEHOLDER in read_text(path):
            from huggingface_hub import ModelCard

            tags = tuple(ModelCard(read_text(path)).data.to_dict().get("tags") or ())
            text = card(settings_of(self.config), "transformers", trained=self._trained, title=repo_id, tags=tags)
            write_text(path, text)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]


def settings_of(config: Any) -> Any:
    """Ours behind those of transformers."""
    return config.to_model_config() if hasattr(config, "to_model_config") else config.to_vision_config()
