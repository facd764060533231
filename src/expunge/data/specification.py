"""A problem as data: a benchmark by name, or a user's own model and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, Value, concatenate_datasets
from pydantic import Field, field_validator, model_validator
from torch import nn

from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.checkpoints import Checkpoint, FactoryModel, fitting, load_checkpoint, load_diffusion
from expunge.data.columns import (
    data_classes,
    encode_labels,
    image_channels,
    image_column,
    is_bytes,
    model_classes,
    numeric_columns,
    require,
)
from expunge.data.concepts import concept_problem, named_concept
from expunge.data.selection import Selection
from expunge.data.sources import read_table
from expunge.errors import BadInput
from expunge.families import (
    Architecture,
    CausalLM,
    Classifier,
    Family,
    Generation,
    Images,
    Inputs,
    Regressor,
    Table,
    Template,
    Text,
)
from expunge.families.estimator import Values, of_classes
from expunge.families.pipelines import filters_of
from expunge.parameters import Parameters
from expunge.problem import Problem, Training, with_ids

_OWN = (
    "data",
    "forget_data",
    "retain",
    "holdout",
    "test",
    "probes",
    "family",
    "id",
    "target",
    "inputs",
    "group",
    "classes",
)


class ProblemSpec(Parameters):
    """What to forget from which model.

    Either `benchmark`, or a `model` with `data` and what to `forget` of it, or a `model` with the rows to forget as
    `forget_data` and those to keep as `retain`, or a text-to-image `model` and a `concept` in words. Sources are files,
    folders or hub ids as in
    `expunge.data.sources.read_table`.
    """

    title = "problem"

    name: str | None = Field(
        default=None, description="how reports call the problem; default: the data's name"
    )
    benchmark: str | None = Field(
        default=None, description="name of an embedded problem (expunge list benchmarks)"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the benchmark, such as {model: vit}"
    )
    forget: Selection | None = Field(
        default=None,
        description="ids, where, class, user or fraction, as a mapping or in short as class=3",
    )
    model: str | FactoryModel | Architecture | None = Field(
        default=None,
        description="the target: folder or hub id of a transformers model, folder that expunge wrote, "
        "{factory: package.module:function, weights: FILE, options: {...}}, or an architecture to train here",
    )
    retrained: str | FactoryModel | None = Field(
        default=None,
        description="a model that was trained without the forget set, as folder, hub id or factory: the yardstick, where "
        "it need not be trained here",
    )
    pretrained: str | FactoryModel | None = Field(
        default=None,
        description="the model that target and retrained model are fine-tuned from, as folder, hub id or factory; "
        "default: fresh weights",
    )
    after: str | None = Field(
        default=None,
        description="in a study: name of the problem whose unlearned models, method by method, this one starts from, as "
        "where deletion requests arrive one after the other",
    )
    recipe: Training | None = Field(
        default=None, description="how the target was trained; needed to retrain, and to train a target here"
    )
    family: Literal["classifier", "regressor", "causal_lm", "estimator"] | None = Field(
        default=None, description="default: what the model says"
    )
    data: str | None = Field(default=None, description="all rows the target was trained on")
    forget_data: str | None = Field(
        default=None, description="the rows to forget, where they are a source of their own"
    )
    retain: str | None = Field(default=None, description="the rows to keep, beside forget_data")
    holdout: str | None = Field(default=None, description="rows of the same kind that were never trained on")
    test: str | None = Field(default=None, description="rows to measure utility on")
    probes: dict[str, str] = Field(default_factory=dict, description="further sources to measure on, by name")
    concept: str | None = Field(
        default=None,
        description="what to erase from a text-to-image model, in words; takes the place of data and forget",
    )
    anchor: str = Field(default="", description="what a prompt for the concept should show instead, in words")
    preserve: list[str] = Field(
        default_factory=list, description="prompts whose images must stay as they are, beside the anchor's"
    )
    id: str | None = Field(default=None, description="column of ids; default: id, or numbers by row")
    target: str | list[str] | None = Field(
        default=None, description="label or target columns; default: label or target"
    )
    inputs: list[str] | None = Field(
        default=None,
        description="input columns; default: all other numeric columns, the image column, or text",
    )
    group: str | None = Field(default=None, description="column to break results down by; default: the class")
    classes: list[str] | None = Field(
        default=None, description="the data's class names in the order of the model's outputs"
    )
    template: Template | None = Field(
        default=None,
        description="language models: how a row becomes a prompt and a completion; default: by the columns messages, "
        "question and answer, or text, and by the tokenizer's chat template where it has one",
    )
    max_length: int = Field(
        default=512, ge=2, description="language models: most tokens of a row; longer rows are refused"
    )
    generation: Generation = Field(
        default=Generation(), description="language models: how far a model is asked to continue a prompt"
    )
    optional: bool = Field(
        default=False,
        description="in a study: leave the problem out, with a notice, where its data is missing",
    )
    allow_pickle: bool = Field(default=False, description="read pickle checkpoints, which can run code")

    @field_validator("forget", mode="before")
    @classmethod
    def _parse_forget(cls, given: Any) -> Any:
        return Selection.parse(given) if isinstance(given, str) else given

    @field_validator("model", mode="before")
    @classmethod
    def _parse_model(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return Architecture(**given) if "kind" in given else FactoryModel(**given)
        return given

    @model_validator(mode="after")
    def _consistent(self) -> ProblemSpec:
        if self.benchmark is not None:
            own = [k for k in _OWN if getattr(self, k)]
            if own:
                raise BadInput(
                    f"problem: '{own[0]}' describes data of your own; "
                    f"leave it out, or leave out benchmark '{self.benchmark}'"
                )
            return self
        if self.concept is not None:
            own = [k for k in (*_OWN, "forget") if getattr(self, k)]
            if own:
                raise BadInput(
                    f"problem: '{own[0]}' describes rows, but a concept is named in words; leave one of them out"
                )
            if not isinstance(self.model, str):
                raise BadInput(
                    "problem: a concept is erased from a text-to-image model; give its folder or hub id as 'model'"
                )
            return self
        if self.anchor or self.preserve:
            raise BadInput("problem: 'anchor' and 'preserve' go with a 'concept'; name it, or leave them out")
        if self.options:
            raise BadInput("problem: 'options' belong to a benchmark; name one, or leave them out")
        if (self.data is None) == (self.forget_data is None):
            both = "not both" if self.data else "or name a benchmark"
            raise BadInput(
                f"problem: give 'data' and what to 'forget', or 'forget_data' (and 'retain'), {both}"
            )
        if self.data is not None and self.forget is None:
            raise BadInput("problem: 'forget' is missing; say what to forget, such as class=3 or ids=FILE")
        if self.data is not None and self.retain is not None:
            raise BadInput("problem: 'retain' goes with 'forget_data'; with 'data', all other rows are kept")
        if self.forget_data is not None and self.forget is not None:
            raise BadInput("problem: 'forget_data' is the forget set already; leave out 'forget'")
        if self.model is None and self.pretrained is None:
            raise BadInput("problem: 'model' is missing; give a model's folder, a hub id or a factory")
        return self

    def build(self, base: Path | None = None, notice: Callable[[str], None] = lambda _: None) -> Problem:
        """Read the data, load the model and put the problem together.

        Args:
            base: folder that relative paths start from; default: the current one.
            notice: told before code of the user is imported.

        A given model sees the columns as they are. A model that is trained here (a `recipe`, no weights)
        sees tables, and predicts regression targets, standardized by the mean and standard deviation of all
        training rows; a retrained model shares those two numbers per column, so they are not forgotten with
        the rows.
        """
        base = base or Path()
        if self.concept is not None and isinstance(self.model, str):
            folder = base / Path(self.model).expanduser()
            location = str(folder) if folder.exists() else self.model
            concept = named_concept(self.concept, self.anchor, self.preserve)
            for part in filters_of(location):
                notice(
                    f"the {part} of '{location}' is a filter around the model: it is neither edited nor saved; pass it to the "
                    f"erased pipeline as from_pretrained(..., {part}=...)"
                )
            return concept_problem(location, concept, self.name)

        def load(reference: str | FactoryModel | Architecture | None) -> Checkpoint | None:
            if reference is None:
                return None
            drawing = self.benchmark is not None and BENCHMARKS[self.benchmark].family == "diffusion"
            if drawing and isinstance(reference, str) and not (base / Path(reference).expanduser()).exists():
                return load_diffusion(
                    reference
                )  # on the hub, only what is asked for tells pipelines from models
            return load_checkpoint(reference, base, allow_pickle=self.allow_pickle, notice=notice)

        checkpoint, pretrained, retrained = load(self.model), load(self.pretrained), load(self.retrained)
        if checkpoint is not None and checkpoint.architecture.kind == "estimator":
            # What the user allows here is part of the problem; what a folder says of itself is not.
            options = {**checkpoint.architecture.options, "allow_pickle": self.allow_pickle}
            checkpoint = replace(checkpoint, architecture=checkpoint.architecture.replace(options=options))
        if checkpoint is None and pretrained is not None:
            checkpoint = replace(pretrained, model=None)
        start = None if pretrained is None else pretrained.model
        if self.benchmark is not None:
            problem = self._benchmark(self.benchmark, checkpoint, start)
        elif checkpoint is not None:
            problem = self._own(checkpoint, base)
        else:
            raise AssertionError("checked by the validator")
        if start is not None or retrained is not None:
            problem = replace(problem, start=start, retrained=None if retrained is None else retrained.model)
        if problem.model is None and problem.recipe is None:
            raise BadInput(
                f"{problem.name}: the model has no weights and there is no 'recipe' to train it; give either"
            )
        _try(problem)
        twins = _twins(problem)
        if twins:
            notice(
                f"{problem.name}: {twins} of the {len(problem.forget_rows)} rows to forget say the same as rows to keep; "
                "what is kept will go on teaching them, so forget or drop these too"
            )
        return problem

    def _benchmark(self, name: str, checkpoint: Checkpoint | None, start: nn.Module | None) -> Problem:
        options = dict(self.options) if self.forget is None else {**self.options, "forget": self.forget}
        benchmark = BENCHMARKS[name](**options)
        problem = benchmark.problem() if checkpoint is None else benchmark.about(checkpoint, start)
        return replace(problem, name=self.name or problem.name, recipe=self.recipe or problem.recipe)

    def _own(self, checkpoint: Checkpoint, base: Path) -> Problem:
        named = {"data": self.data, "forget": self.forget_data, "retain": self.retain}
        named |= {"holdout": self.holdout, "test": self.test, **self.probes}
        tables = {k: with_ids(read_table(s, base), self.id, k) for k, s in named.items() if s is not None}
        parts = [tables.pop(k) for k in ("data", "forget", "retain") if k in tables]
        given = tuple(str(i) for i in parts[0]["id"])
        train = parts[0] if len(parts) == 1 else _joined(*parts)
        family = checkpoint.family or self._family(checkpoint, train)
        checkpoint = fitting(checkpoint, family)
        if isinstance(family, Classifier):
            train = encode_labels(train, family.target, family.classes, "the training data")
            tables = {k: encode_labels(t, family.target, family.classes, k) for k, t in tables.items()}
        if self.forget is not None:
            forget_ids, scope = self.forget.apply(train, family, base)
        else:
            forget_ids, scope = given, "all rows of the forget file"
        return Problem(
            name=self.name or Path(str(self.data or self.forget_data)).name.split(".")[0] or "data",
            family=family,
            train=train,
            forget_ids=forget_ids,
            holdout=tables.pop("holdout", None),
            probes=tables,
            model=checkpoint.model,
            architecture=checkpoint.architecture,
            recipe=self.recipe or (None if family.gradients else Training(epochs=1)),
            scope=scope,
            source={k: s for k, s in {**named, "model": self.model}.items() if isinstance(s, str)},
        )

    def _family(self, checkpoint: Checkpoint, train: Dataset) -> Family:
        config = checkpoint.config
        if checkpoint.architecture.name == "causal-lm" or self.family == "causal_lm":
            return self._language_model(checkpoint, train)
        numbers = (
            getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", 2) == 1
        )
        answers = checkpoint.answers
        kind = self.family or (None if config is None else "regressor" if numbers else "classifier")
        if answers is not None:
            kind = "regressor" if answers == "values" else "classifier"
        if kind is None:
            raise BadInput(
                "problem: the model does not say what it predicts; give family: classifier or regressor"
            )
        targets = self._targets(train, kind)
        for column in (*targets, *([self.group] if self.group else [])):
            require(train, column, "the training data")
        inputs = self._inputs(checkpoint, train, targets)
        if kind == "regressor":
            words = [c for c in targets if c not in numeric_columns(train, ())]
            if words:
                raise BadInput(f"the target column '{words[0]}' does not hold numbers, as a regressor needs")
            Regressor(inputs, targets).check(train, "the training data")
            if answers is not None:
                return Values.fit(inputs, train, targets, self.group)
            return Regressor.fit(inputs, train, targets, self.group, raw=checkpoint.model is not None)
        names = self.classes or (model_classes(config) if config is not None else [])
        if answers is not None:
            names = names or checkpoint.labels or data_classes(train, targets[0])
            return of_classes(answers)(inputs, names, targets[0], self.group)
        return Classifier(inputs, names or data_classes(train, targets[0]), targets[0], self.group)

    def _language_model(self, checkpoint: Checkpoint, train: Dataset) -> CausalLM:
        if not checkpoint.location:
            raise BadInput(
                "problem: a language model is read with its tokenizer; give a transformers folder or a hub id"
            )
        longest = int(getattr(checkpoint.config, "max_position_embeddings", self.max_length))
        length = min(longest, self.max_length)
        family = CausalLM.from_pretrained(
            checkpoint.location, self.template, length, self.group, self.generation
        )
        if self.template is not None:
            return family
        columns, chat = train.column_names, getattr(family.tokenizer, "chat_template", None) is not None
        if "messages" in columns:
            found = Template(kind="chat", messages="messages")
        elif {"question", "answer"} <= set(columns):
            found = Template(kind="chat" if chat else "plain")
        elif "text" in columns:
            found = Template(kind="text", completion="text")
        else:
            raise BadInput(
                f"the training data has no columns messages, question and answer, or text (it has {', '.join(columns)}); "
                "say with 'template' how a row is read"
            )
        return CausalLM(family.tokenizer, found, length, self.group, self.generation)

    def _targets(self, dataset: Dataset, kind: str) -> list[str]:
        if isinstance(self.target, list):
            if kind == "classifier" and len(self.target) != 1:
                raise BadInput(f"problem: a classifier has one label column, got {', '.join(self.target)}")
            return self.target
        if self.target is not None:
            return [self.target]
        found = [c for c in ("label", "target") if c in dataset.column_names]
        if not found:
            raise BadInput(
                "the training data has no column 'label' or 'target' (it has "
                f"{', '.join(dataset.column_names)}); "
                "name the right one with 'target'"
            )
        return found[:1]

    def _inputs(self, checkpoint: Checkpoint, train: Dataset, targets: list[str]) -> Inputs:
        config = checkpoint.config
        text = config is not None and "SequenceClassification" in str(config.architectures)
        columns = self.inputs or (["text"] if text else [])
        for column in columns:
            require(train, column, "the training data")
        if text:
            longest = min(int(getattr(config, "max_position_embeddings", 512)), 512)
            return Text.from_pretrained(checkpoint.location, columns, longest)
        picture = image_column(train.select_columns(columns) if columns else train)
        if config is not None:
            if picture is None:
                had = ", ".join(train.column_names)
                raise BadInput(
                    f"the training data has no column of images (it has {had}); name it with 'inputs'"
                )
            channels = int(getattr(config, "num_channels", 3))
            return Images.from_processor(checkpoint.location, picture, channels)
        if picture is not None:
            rescale = 1 / 255 if is_bytes(train, picture) else 1.0
            return Images(picture, channels=image_channels(train, picture), rescale=rescale)
        columns = columns or numeric_columns(train, ["id", self.id or "id", self.group or "id", *targets])
        if not columns:
            raise BadInput(
                f"the training data has no numeric columns besides {', '.join(targets)}; name the 'inputs'"
            )
        if checkpoint.model is not None or checkpoint.answers is not None:
            return Table(columns)
        Table(columns).check(train, "the training data")
        return Table.fit(train, columns)


def _joined(forget: Dataset, retain: Dataset) -> Dataset:
    """Both parts in one table; whole numbers become real ones where the other part has those."""
    for column in set(forget.column_names) & set(retain.column_names):
        kinds = forget.features[column], retain.features[column]
        if kinds[0] == kinds[1]:
            continue
        if not all(column in numeric_columns(part, ()) for part in (forget, retain)):
            raise BadInput(
                f"forget_data and retain do not fit together: column '{column}' holds {kinds[0]} in one "
                f"and {kinds[1]} in the other"
            )
        forget, retain = (part.cast_column(column, Value("float64")) for part in (forget, retain))
    return concatenate_datasets([forget, retain])


def _twins(problem: Problem) -> int:
    """Rows to forget of a language model that a row to keep repeats word by word."""
    if not isinstance(problem.family, CausalLM):
        return 0
    columns = [
        problem.train[c][:] for c in problem.family.template.columns if c in problem.train.column_names
    ]
    said = [repr(row) for row in zip(*columns, strict=True)]
    kept = {said[i] for i in problem.retain_rows}
    return sum(said[i] in kept for i in problem.forget_rows)


def _try(problem: Problem) -> None:
    """Read one row with the model, so that what does not fit is said before anything is trained."""
    model = problem.model if problem.model is not None else problem.fresh_model(0)
    family = problem.family
    batch = family.collate(problem.train.with_format("numpy")[:2])
    was_training = model.training
    try:
        with torch.no_grad():
            prediction = family.forward(model.eval(), batch).prediction
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in batch.inputs.items())
        raise BadInput(
            f"{problem.name}: the model cannot read the data ({shapes}): {str(error).strip().splitlines()[0]}"
        ) from None
    finally:
        model.train(was_training)
    if isinstance(family, Classifier) and prediction.shape[-1] != len(family.classes):
        raise BadInput(
            f"{problem.name}: the model gives {prediction.shape[-1]} values per row, but the data has "
            f"{len(family.classes)} classes ({', '.join(family.classes[:20])}); list all with 'classes'"
        )
