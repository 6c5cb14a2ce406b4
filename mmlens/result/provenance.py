"""Where a result came from: model, weights, software, hardware, inputs and settings of one run."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mmlens import __version__
from mmlens.errors import ResultError

_PACKAGES = ("torch", "transformers", "transformer_lens", "numpy")


def _versions() -> dict[str, str]:
    """Installed version of every package whose arithmetic ends up in a result (imports none of them)."""
    found = {"mmlens": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


class RunInfo(BaseModel):
    """Everything needed to say where numbers came from and to compute them again.

    Attributes:
        model_id: hub id, folder name or name of an embedded model.
        weight_fingerprint: digest of the weights that were actually used.
        dtype: parameter dtype, e.g. ``float32``.
        device: device of the decoder, e.g. ``cpu`` or ``cuda:0``.
        revision: revision of the checkpoint, where it has one.
        attn_implementation: ``sdpa``, ``eager`` or the engine's name; it changes the last digits.
        threads: intra-op threads; they change the order of sums.
        batch_size: samples or masks run together.
        seed: seed of the generator that drew masks and bootstraps.
        image_sha256: digest of every input image, in sample order.
        prompts: text of every prompt, in sample order.
        git_commit: commit of the code, where it is known.
        command: command line that computes this result again.
        settings: options of the method, as JSON values.
        versions: version of every package that took part.
        created: time the result was made (UTC, ISO 8601).
        seconds: wall-clock time of the computation.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="constants", protected_namespaces=()
    )

    model_id: str = Field(min_length=1)
    weight_fingerprint: str = Field(min_length=1)
    dtype: str = Field(min_length=1)
    device: str = Field(min_length=1)
    revision: str | None = None
    attn_implementation: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    image_sha256: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    git_commit: str | None = None
    command: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=_versions)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = Field(default=0.0, ge=0.0)

    @classmethod
    def collect(
        cls,
        *,
        model_id: str,
        weight_fingerprint: str,
        dtype: str,
        device: str,
        revision: str | None = None,
        attn_implementation: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        image_sha256: Sequence[str] = (),
        prompts: Sequence[str] = (),
        git_commit: str | None = None,
        command: str | None = None,
        settings: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> "RunInfo":
        """Provenance of a run that has just finished: adds software versions and the time.

        Raises:
            ResultError: a field is empty or of the wrong type, or a setting is not a JSON value.
        """
        try:
            return cls(
                model_id=model_id,
                weight_fingerprint=weight_fingerprint,
                dtype=dtype,
                device=device,
                revision=revision,
                attn_implementation=attn_implementation,
                threads=threads,
                batch_size=batch_size,
                seed=seed,
                image_sha256=tuple(image_sha256),
                prompts=tuple(prompts),
                git_commit=git_commit,
                command=command,
                settings=dict(settings or {}),
                seconds=seconds,
            )
        except ValidationError as error:
            raise ResultError(
                f"the provenance of this run is malformed: {error}. Give plain strings and numbers; "
                "settings must be JSON values (str, int, float, bool, None, lists and dicts of these)."
            ) from error

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of every known field, for tables; prompts and images are counted."""
        plain = {
            "model": self.model_id,
            "revision": self.revision,
            "weights": self.weight_fingerprint,
            "dtype": self.dtype,
            "device": self.device,
            "attention": self.attn_implementation,
            "threads": self.threads,
            "batch size": self.batch_size,
            "seed": self.seed,
            "prompts": len(self.prompts) or None,
            "images": len(self.image_sha256) or None,
            "git commit": self.git_commit,
            "created": self.created,
            "seconds": f"{self.seconds:.1f}",
        }
        rows = [(name, str(value)) for name, value in plain.items() if value is not None]
        rows += [(f"setting: {name}", str(value)) for name, value in self.settings.items()]
        return rows + [(f"version: {name}", value) for name, value in self.versions.items()]
