"""How an encoder that is not DPR's is to be read, where its folder does not say or is not to decide."""

from dataclasses import asdict, dataclass
from typing import Any

from rag.encoders.pooling import POOLINGS
from rag.errors import UserError


@dataclass(frozen=True)
class EncoderSettings:
    """What goes before an encoder's own files; None: what they say.

    pooling: cls, mean, max, last or mean_sqrt_len; must be given for a model without modules.json. normalize: vectors
    of unit length. question_prompt, passage_prompt: text that stands before each, such as E5's "query: " and
    "passage: ". question_prompt_name, passage_prompt_name: one of the prompts in config_sentence_transformers.json.
    max_length: tokens of a text, special ones included.
    """

    pooling: str | None = None
    normalize: bool | None = None
    question_prompt: str | None = None
    passage_prompt: str | None = None
    question_prompt_name: str | None = None
    passage_prompt_name: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UserError(
                f"encoder.pooling={self.pooling} does not exist; available: {', '.join(POOLINGS)}"
            )
        if self.max_length is not None and self.max_length < 3:
            raise UserError(f"encoder.max_length={self.max_length} leaves no room for a text: give 3 or more")
        for side in ("question", "passage"):
            if (
                getattr(self, f"{side}_prompt") is not None
                and getattr(self, f"{side}_prompt_name") is not None
            ):
                raise UserError(
                    f"encoder.{side}_prompt and encoder.{side}_prompt_name are both given: give the text or the name"
                )

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}
