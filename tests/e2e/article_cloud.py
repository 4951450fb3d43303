"""The article's job on SageMaker has the settings of examples/article.toml.

    python3 tests/e2e/article_cloud.py SOURCE SHOWN

SHOWN is what `qlora run --show` says of the job file: all settings, with defaults.
"""
import json
import pathlib
import sys
import tomllib

source, shown = pathlib.Path(sys.argv[1]), json.load(open(sys.argv[2]))
written = tomllib.load(open(source / "examples/article.toml", "rb"))
hyper = json.load(open(source / "examples/sagemaker/create-training-job.json"))["HyperParameters"]
settings = {**shown["arms"]["qlora"], **shown["pack"]}
names = {*written["train"], *written["pack"]}
if set(hyper) != names:
    sys.exit(f"FAILED: hyperparameters {sorted(hyper)}, and the job file has {sorted(names)}")
for name, text in hyper.items():
    expected = settings[name]
    if (text if isinstance(expected, str) else type(expected)(text)) != expected:
        sys.exit(f"FAILED: the hyperparameter {name} is {text}, and the job file says {expected}")
