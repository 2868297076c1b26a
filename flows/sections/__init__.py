"""The sections of tamis.toml: pydantic models, one file for each stage they belong to."""
