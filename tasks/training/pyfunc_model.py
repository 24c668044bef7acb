"""The registered model, as `mlflow.pyfunc` loads it: a table of files in, a table of made videos out.

MLflow stores this file, the packages `models` and `tasks`, and the exported checkpoint (models from code: nothing is
pickled), so that a machine with only requirements.txt can run it:

    model = mlflow.pyfunc.load_model("models:/talking-heads-fewshot@champion")
    model.predict(pandas.DataFrame([{"face": "me.jpg", "driver": "you.mp4", "out": "made.mp4"}]), params={"seed": 1})

    model = mlflow.pyfunc.load_model("models:/talking-heads-synctalk@champion")
    model.predict(pandas.DataFrame([{"template": "me.mp4", "audio": "speech.wav", "out": "made.mp4"}]))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.pyfunc import PythonModel, PythonModelContext


class TalkingHeads(PythonModel):
    """Makes one video for every row.

    Columns: `face` (picture or video), or `template`, which is the same under the name that it has where a family paints on it;
    `out` (mp4 to write); and `driver` (video) or `audio` (sound file), whichever the model's family is driven by. All are paths
    of files on this machine. `params`: `seed`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that was logged with the model."""
        from tasks.training.registry import load_export, read_record

        folder = Path(context.artifacts["checkpoint"])
        run_id = read_record(folder)["run_id"]
        self.model = load_export(folder, uri=f"runs:/{run_id}/model" if run_id else None)

    def predict(self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """Return one row per video: `path` and `frames`."""
        from tasks.generation.generate import generate

        rows = []
        for row in model_input.to_dict("records"):
            out = _path(row, "out")
            face = _path(row, "face") or _path(row, "template")
            if out is None or face is None:
                raise ValueError("every row needs the columns out, and face or template")
            seed = int((params or {}).get("seed", 0))
            made = generate(self.model, face=face, driver=_path(row, "driver"), audio=_path(row, "audio"), out=out, seed=seed)
            rows.append({"path": str(made.path), "frames": made.frames})
        return pandas.DataFrame(rows, columns=["path", "frames"])


def _path(row: Mapping[Any, Any], column: str) -> Path | None:
    """The file named in a column; None where the column is missing or empty."""
    value = row.get(column)
    return Path(value).expanduser() if isinstance(value, str) and value else None


# MLflow runs this file to get the model; it is never imported for anything else.
mlflow.models.set_model(TalkingHeads())
