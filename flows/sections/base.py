"""What every section is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
SECRET = "secret"
"""Type of an error whose input is not to be repeated."""


class Section(BaseModel):
    """Frozen; an unknown key is an error; a key's docstring describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
