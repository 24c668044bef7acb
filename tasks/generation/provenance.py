"""What every made video carries: that it is synthetic, and which model of which run made it."""

from __future__ import annotations

from dataclasses import dataclass

PLUMBING = "the model is plumbing-sized (profile demo): it shows that every part works, not what the method can do"
"""What is said of everything that such a model makes."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model made something."""

    family: str
    uri: str = "unregistered"
    """E.g. `models:/talking-heads-fewshot/3`."""
    version: str = ""
    run_id: str = ""
    """The MLflow run that trained it."""

    def metadata(self) -> dict[str, str]:
        """Container metadata of an mp4 that this model made; also readable by ordinary players (`comment`)."""
        name = f"{self.uri} version {self.version}" if self.version else self.uri
        return {
            "comment": f"Synthetic video, made by the talking-heads model {name}; not a recording.",
            "synthetic": "true",
            "model_family": self.family,
            "model_uri": self.uri,
            "model_version": self.version or "none",
            "run_id": self.run_id or "none",
        }
