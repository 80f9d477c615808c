"""Data is checked and split before anything is trained."""

from collections import Counter

import datasets
import numpy as np
import pytest

from layer_surgeon.errors import DataError
from layer_surgeon.finetune import sources
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.data import prepare_data, prepare_evaluation
from layer_surgeon.finetune.examples import hold_out, subsample
from layer_surgeon.finetune.labels import classes_of, labels_of_model, make_label_map
from layer_surgeon.finetune.sources import load_data
from layer_surgeon.finetune.tasks import finetune_task
from tests.support.classification import Recorder, rows, write_csv


def prepare(train, validation=None, test=None, *, model_names=(), progress=None, **settings):
    return prepare_data(train, validation, test, FinetuneConfig(**settings), model_names=model_names, progress=progress)


def fails(says, *arguments, **settings):
    with pytest.raises(DataError) as error:
        prepare(*arguments, **settings)
    assert says in str(error.value), str(error.value)


# ---- sources


def test_packaged_name():
    data = prepare("sentences-imdb")
    assert data.label_names == ("negative", "positive")
    assert (len(data.train), len(data.validation), data.test) == (800, 200, None)
    assert data.held_out
    assert data.spec == ("sentences-imdb",)


def test_csv_file_with_text_labels(tmp_path):
    data = prepare(str(write_csv(tmp_path / "mine.csv", rows(20, labels=("bad", "good")))))
    assert data.name == "mine"
    assert data.label_names == ("bad", "good")
    assert data.spec == (str(tmp_path / "mine.csv"),)
    assert Counter(data.train.labels) == {0: 8, 1: 8}
    assert Counter(data.validation.labels) == {0: 2, 1: 2}


def test_several_files(tmp_path):
    paths = [write_csv(tmp_path / f"{name}.csv", rows(10, seed=seed)) for seed, name in enumerate("ab")]
    data = prepare(paths)
    assert len(data.train) + len(data.validation) == 20
    assert data.spec == tuple(map(str, paths))


def test_dataset_dict_with_class_label_and_all_splits():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    parts = {
        name: datasets.Dataset.from_list(rows(count), features=features)
        for name, count in (("train", 20), ("validation", 6), ("test", 4))
    }
    data = prepare(datasets.DatasetDict(parts))
    assert data.label_names == ("neg", "pos")
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 4)
    assert not data.held_out


def test_dataset_list_of_rows_and_dict_of_splits_are_the_same():
    made = rows(20)
    expected = prepare(made)
    assert prepare(datasets.Dataset.from_list(made)).train == expected.train
    assert prepare({"train": made, "dev": rows(6)}).validation.texts == tuple(r["text"] for r in rows(6))


@pytest.mark.parametrize("split", ["test", "validation", "dev"])
def test_the_only_split_is_for_training_whatever_its_name(split):
    data = prepare({split: rows(20)})
    assert data.held_out
    assert data.test is None
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert set(data.train.texts).isdisjoint(data.validation.texts)


def test_unknown_name_offers_similar_ones():
    fails("Did you mean sst2", "sst-2")
    fails("There is no data set or file 'zzzz'. The data sets are: sst2", "zzzz")


def test_name_of_another_task():
    fails("squad is a data set for question-answering, but the model is for text-classification.", "squad")


def test_missing_file(tmp_path):
    fails("There is no file", str(tmp_path / "train.csv"))


def test_no_data_at_all():
    fails("empty list", [])
    fails("empty dict", {})
    fails("The data has the type int", 3)
    fails("a row of the type int", [1, 2])


# ---- the Hub (its protocol is tested with the three lines)


@pytest.fixture
def hub(monkeypatch):
    """Replaces the Hub, and records the requests."""
    asked = []

    def answer_with(answer):
        def load_dataset(*arguments, **keywords):
            asked.append((arguments, keywords))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(sources, "load_dataset", load_dataset)
        return asked

    return answer_with


def hub_set(**splits):
    return datasets.DatasetDict({name: datasets.Dataset.from_list(made) for name, made in splits.items()})


def test_name_leads_to_hub_id_subset_columns_and_splits(hub):
    pairs = [{"premise": r["text"], "hypothesis": "x", "label": i % 3, "idx": i} for i, r in enumerate(rows(30))]
    asked = hub(hub_set(train=pairs, validation_matched=pairs[:9], validation_mismatched=pairs[:6], test_matched=pairs))
    data = prepare("mnli")
    assert asked == [(("nyu-mll/glue", "mnli"), {"revision": None})]
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 9, 6)
    assert data.label_names == ("entailment", "neutral", "contradiction")
    assert data.test_spec == ("mnli",)


def test_rows_of_a_hub_set_without_text_or_label_are_left_out_and_counted(hub):
    pairs = [{"premise": r["text"], "hypothesis": "x", "label": i % 3} for i, r in enumerate(rows(30))]
    odd = [{"premise": "a b", "hypothesis": "c", "label": -1}, {"premise": None, "hypothesis": "c", "label": 0}]
    hub(hub_set(train=pairs + odd, validation=pairs, test=pairs))
    progress = Recorder()
    assert len(prepare("snli", progress=progress).train) == 30
    assert "snli (train): skipped 2 of 32 rows, which have no text or label." in progress.notices


def test_any_hub_id(hub):
    hub(hub_set(train=rows(20), test=rows(4)))
    data = prepare("somebody/reviews")
    assert (data.name, data.spec, data.held_out, len(data.test)) == ("reviews", ("somebody/reviews",), True, 4)


def test_hub_failures(hub):
    hub(datasets.exceptions.DatasetNotFoundError("Dataset 'some/thing' doesn't exist on the Hub."))
    fails("some/thing can't be loaded from the Hub: Dataset 'some/thing' doesn't exist on the Hub. Check", "some/thing")
    hub(ConnectionError("Couldn't reach the Hub"))
    fails("Couldn't reach the Hub. Check the id and your network", "sst2")


# ---- columns


def test_guessed_columns_are_reported():
    made = [{"Review": row["text"], "Sentiment": row["label"], "id": i} for i, row in enumerate(rows(20))]
    progress = Recorder()
    data = prepare(made, progress=progress)
    assert (data.columns.text, data.columns.label) == ("Review", "Sentiment")
    assert progress.notices == ["Guessed columns of the given rows: text = 'Review', label = 'Sentiment'."]


def test_named_columns_are_used_without_a_notice():
    made = [{"text": "no", "words": row["text"], "label": "x", "kind": row["label"]} for row in rows(20)]
    progress = Recorder()
    data = prepare(made, text_column="words", label_column="kind", progress=progress)
    assert data.train.texts[0] in {row["text"] for row in rows(20)}
    assert progress.notices == []


def test_pairs_are_guessed():
    made = [{"premise": r["text"], "hypothesis": r["text"][::-1], "label": r["label"]} for r in rows(20)]
    data = prepare(made)
    assert data.train.pairs == tuple(text[::-1] for text in data.train.texts)


def test_the_only_column_with_sentences_is_the_text():
    made = [{"who": "anna", "opinion_of_it": row["text"], "label": row["label"]} for row in rows(20)]
    assert prepare(made).columns.text == "opinion_of_it"


def test_label_column_missing():
    made = [{"text": row["text"], "lable": row["label"]} for row in rows(20)]
    fails("has no label column. Its columns are: text, lable. Did you mean 'lable'?", made)
    fails("has no label column 'stars'. Its columns are: text, label.", rows(20), label_column="stars")
    fails("--label-column", rows(20), label_column="stars")


def test_text_column_missing():
    made = [{"one": row["text"], "two": row["text"], "label": row["label"]} for row in rows(20)]
    fails("has no text column. Its columns are: one, two, label.", made)
    fails("has no text_pair column 'other'", rows(20), text_pair_column="other")


# ---- labels


def test_labels_that_are_not_consecutive_ids():
    made = [row | {"label": {0: 5, 1: 10}[row["label"]]} for row in rows(20)]
    assert prepare(made).label_names == ("5", "10")


def test_bools_and_whole_floats_are_classes():
    assert prepare([row | {"label": bool(row["label"])} for row in rows(20)]).label_names == ("0", "1")
    assert prepare([row | {"label": float(row["label"])} for row in rows(20)]).label_names == ("0", "1")


def test_the_models_names_are_kept_for_the_same_classes():
    made = rows(20, labels=("bad", "good"))
    data = prepare(made, model_names=("good", "bad"))
    assert data.label_names == ("good", "bad")
    texts = {row["text"]: row["label"] for row in made}
    assert all(
        data.label_names[label] == texts[text] for text, label in zip(data.train.texts, data.train.labels, strict=True)
    )
    assert prepare(rows(20), model_names=("negative", "positive")).label_names == ("negative", "positive")
    assert prepare(rows(20), model_names=("LABEL_0", "LABEL_1")).label_names == ("0", "1")


def test_label_in_validation_or_test_not_seen_in_training():
    train = rows(20, labels=("bad", "good"))
    other = [*rows(4, labels=("bad", "good")), {"text": "so so", "label": "godo"}]
    for arguments in ((train, other), (train, None, other)):
        fails("labels that were not seen in training: 'godo' (1 rows)", *arguments)
        fails("The classes are: 'bad', 'good'. Did you mean 'good'?", *arguments)


def test_hidden_labels():
    fails("hidden", rows(20), None, [{"text": "a b", "label": -1}])


def test_only_one_class():
    fails("only one class, 0", [row | {"label": 0} for row in rows(20)])


def test_text_column_used_as_the_label():
    fails(
        "20 different labels in 20 rows, so they are probably not classes",
        rows(20),
        label_column="text",
        text_column="text",
    )


def test_numbers_that_are_not_classes():
    fails("label 0.5, which is not a class", [row | {"label": 0.5 + row["label"]} for row in rows(20)])


def test_missing_label():
    fails("row 3: the label is missing", [row | ({"label": None} if i == 2 else {}) for i, row in enumerate(rows(20))])


def test_list_of_labels():
    fails("one class per row", [row | {"label": [row["label"]]} for row in rows(20)])


# ---- texts


def test_empty_texts():
    made = [row | ({"text": " "} if i in (2, 4) else {}) for i, row in enumerate(rows(20))]
    fails("the given rows, column 'text': 2 empty texts (rows 3, 5)", made)
    fails("column 'text': 1 empty texts (rows 1)", rows(20), [{"text": None, "label": 0}])


def test_invalid_texts():
    fails("row 1: found 7 of the type int, but expected a text", [row | {"text": 7} for row in rows(20)])


# ---- splits


def test_hold_out_is_stratified_seeded_and_loses_nothing():
    made = [row | {"label": 0 if i % 4 else 1} for i, row in enumerate(rows(80))]
    whole = prepare(made, validation_fraction=0.2)
    assert Counter(whole.validation.labels) == {0: 12, 1: 4}
    assert sorted(whole.train.texts + whole.validation.texts) == sorted(row["text"] for row in made)
    assert prepare(made).validation == whole.validation
    assert prepare(made, seed=1).validation != whole.validation


def test_hold_out_leaves_one_of_every_class():
    made = [*rows(20), {"text": "only one", "label": 2}]
    data = prepare(made, validation_fraction=0.5)
    assert set(data.train.labels) == {0, 1, 2}
    assert len(data.validation) in (10, 11)


def test_too_few_rows_to_hold_out():
    fails("too few to hold out 20%", rows(2))


def test_fraction_and_numbers_of_examples():
    data = prepare(rows(100), rows(40), rows(40), train_fraction=0.1, max_eval_samples=20)
    assert Counter(data.train.labels) == {0: 5, 1: 5}
    assert (len(data.validation), len(data.test)) == (20, 20)
    assert len(prepare(rows(100), max_train_samples=7).train) == 7


def test_the_held_out_part_does_not_depend_on_the_fraction():
    assert prepare(rows(100), train_fraction=0.1).validation == prepare(rows(100)).validation


def test_subsample_keeps_order_and_shares():
    whole = prepare(rows(100)).train
    part = subsample(whole, 10, seed=3)
    positions = [whole.texts.index(text) for text in part.texts]
    assert Counter(part.labels) == {0: 5, 1: 5}
    assert positions == sorted(positions)
    rest, taken = hold_out(whole, 0.25, seed=3)
    assert len(rest) + len(taken) == len(whole)


# ---- data for a model that is trained already


def evaluation(data, names, **settings):
    return prepare_evaluation(data, names, FinetuneConfig(**settings))


def test_labels_by_name_in_the_models_order():
    _, examples = evaluation(rows(4, labels=("bad", "good")), ("good", "bad"))
    assert examples.labels == (1, 0, 1, 0)


def test_names_of_the_data_set_that_are_the_models():
    place, examples = evaluation("sentences-yelp", ("positive", "negative"))
    assert place == "sentences-yelp"
    assert len(examples) == 1000
    assert examples.labels[0] == 0  # "Wow... Loved this place." is labelled 1, positive


def test_labels_are_matched_by_number_without_names():
    _, examples = evaluation(rows(4), ("negative", "positive"))
    assert examples.labels == (0, 1, 0, 1)
    _, examples = evaluation([row | {"label": 5 * row["label"]} for row in rows(4)], ("0", "5"))
    assert examples.labels == (0, 1, 0, 1)


def test_one_class_is_enough_to_measure():
    _, examples = evaluation([{"text": "a b", "label": 1}], ("negative", "positive"))
    assert examples.labels == (1,)


def test_label_that_the_model_does_not_know():
    with pytest.raises(DataError, match="'mixed'"):
        evaluation([{"text": "a b", "label": "mixed"}], ("negative", "positive"))


def test_columns_of_the_run_are_used_if_present():
    made = [{"text": "x y", "words": row["text"], "label": 9, "kind": row["label"]} for row in rows(4)]
    columns = {"text": "words", "text_pair": None, "label": "kind"}
    _, examples = prepare_evaluation(made, ("0", "1"), FinetuneConfig(), known_columns=columns)
    assert examples.texts == tuple(row["text"] for row in rows(4))
    _, examples = prepare_evaluation(rows(4), ("0", "1"), FinetuneConfig(), known_columns=columns)
    assert examples.texts == tuple(row["text"] for row in rows(4))


def test_separate_data_are_the_split_of_their_role():
    """The best epoch is chosen on the validation data, so it must not see the test split."""
    other = {"train": rows(8), "validation": rows(6, seed=1), "test": rows(5, seed=2)}
    data = prepare(rows(40), other, other)
    assert (len(data.validation), len(data.test)) == (6, 5)
    assert len(prepare(rows(40), {"train": rows(8), "test": rows(5)}).validation) == 5


def test_a_test_split_without_labels_is_not_used():
    """As in the data of competitions, such as GLUE."""
    unlabelled = [row | {"label": -1} for row in rows(6)]
    for test in (unlabelled, [{"text": row["text"]} for row in rows(6)]):
        progress = Recorder()
        data = prepare({"train": rows(40), "test": test}, progress=progress)
        assert data.test is None
        assert "the given rows (test) has no labels, so it is not used." in progress.notices
    with pytest.raises(DataError, match="labels that were not seen in training: -1"):
        prepare(rows(40), None, unlabelled)
    assert prepare({"train": rows(40, labels=(-1, 1)), "test": rows(6, labels=(-1, -1))}).test is not None


def test_numbers_of_other_classes_are_not_matched_by_position():
    assert labels_of_model(["1", 2.0], "a", ("1", "2")).encode([1, 2], "a") == [0, 1]
    assert labels_of_model([0, 1], "a", ("bad", "good")).encode([0, 1], "a") == [0, 1]
    with pytest.raises(DataError, match="not seen in training: 0"):
        labels_of_model([0, 1], "a", ("1", "2"))
    assert classes_of([1.0, 10.0, 2], "a") == ("1", "10", "2")


def test_the_same_rows_for_validation_and_test_are_noticed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_csv(folder / "train.csv", rows(40))
    test, other = write_csv(folder / "test.csv", rows(20, seed=1)), write_csv(tmp_path / "b.csv", rows(20, seed=2))
    for train, validation, tested, is_said in (
        (rows(40), test, test, True),
        (folder, folder, None, True),
        (folder, test, None, True),
        (rows(40), rows(20, seed=1), rows(20, seed=1), True),
        (rows(40), test, other, False),
        (folder, None, None, False),
    ):
        progress = Recorder()
        prepare(train, validation, tested, progress=progress)
        assert any("are the same 20 examples" in notice for notice in progress.notices) == is_said


def test_classes_of_separate_data_are_matched_by_name():
    def declared(made, names):
        return datasets.Dataset.from_list(made).cast_column("label", datasets.ClassLabel(names=names))

    train = declared(rows(40), ["neg", "pos"])
    turned = declared([row | {"label": 1 - row["label"]} for row in rows(20, seed=1)], ["pos", "neg"])
    straight = declared(rows(20, seed=1), ["neg", "pos"])
    assert prepare(train, straight, turned).test.labels == prepare(train, straight, straight).test.labels
    words = [row | {"label": ("neg", "pos")[row["label"]]} for row in rows(40)]
    assert prepare(words, straight).validation.labels == prepare(train, straight).validation.labels
    spelled = [row | {"label": ("neg", "pos")[row["label"]]} for row in rows(20, seed=1)]
    assert prepare(train, spelled).validation.labels == prepare(train, straight).validation.labels


def test_classes_of_a_split_are_matched_by_name():
    train = datasets.Dataset.from_list(rows(40)).cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    turned = datasets.Dataset.from_list([row | {"label": 1 - row["label"]} for row in rows(20, seed=1)])
    turned = turned.cast_column("label", datasets.ClassLabel(names=["pos", "neg"]))
    data = prepare({"train": train, "validation": turned})
    assert data.validation.labels == tuple(row["label"] for row in rows(20, seed=1))


def test_class_names_of_tagged_words():
    """As most data sets of entities on the Hub have them."""

    def tagged(names):
        made = [{"tokens": ["a", "b", "c"], "ner_tags": [0, 1, 2]} for _ in range(20)]
        tags = datasets.Sequence(datasets.ClassLabel(names=names))
        features = {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags}
        return datasets.Dataset.from_list(made, features=datasets.Features(features))

    task = finetune_task("token-classification")
    other = tagged(["O", "B-LOC", "B-PER"])
    data = prepare_data(tagged(["O", "B-PER", "B-LOC"]), other, None, FinetuneConfig(), task=task)
    assert data.label_names == ("O", "B-PER", "B-LOC")
    assert data.validation.tags[0] == (0, 2, 1)


def test_other_names_of_the_same_number_of_classes_are_noticed():
    def declared(made, names):
        return datasets.Dataset.from_list(made).cast_column("label", datasets.ClassLabel(names=names))

    for names, is_said in ((["Pos", "Neg"], True), (["neg", "pos"], False)):
        progress = Recorder()
        prepare(declared(rows(40), ["neg", "pos"]), declared(rows(20, seed=1), names), progress=progress)
        assert any("has the classes Pos, Neg, and the model neg, pos" in note for note in progress.notices) == is_said


def test_numbers_with_a_plus_sign():
    made = [row | {"label": ("-1", "+1")[row["label"]]} for row in rows(40)]
    data = prepare(made, [row | {"label": 2 * row["label"] - 1} for row in rows(20, seed=1)])
    assert data.label_names == ("-1", "1")
    mixed = [row | {"label": ("-1", "+1", "neutral")[index % 3]} for index, row in enumerate(rows(60))]
    data = prepare(mixed, made)
    assert {data.label_names[label] for label in data.validation.labels} == {"-1", "+1"}
    _, examples = evaluation(made, ("+1", "-1"))
    assert {examples.labels[index] for index in range(0, 40, 2)} == {1}


def test_names_that_are_numbers_are_not_class_ids():
    made = [row | {"label": index % 3} for index, row in enumerate(rows(60))]
    train = datasets.Dataset.from_list(made).cast_column("label", datasets.ClassLabel(names=["1", "2", "3"]))
    with pytest.raises(DataError, match=r"labels that were not seen in training: 3 \(10 rows\)"):
        prepare(train, [row | {"label": index % 3 + 1} for index, row in enumerate(rows(30, seed=1))])


def test_numbers_among_class_names():
    """A part of the data may have only those classes whose names are numbers."""
    made = [row | {"label": ("1", "2", "other")[index % 3]} for index, row in enumerate(rows(60))]
    part = [row | {"label": ("1", "2")[index % 2]} for index, row in enumerate(rows(8))]
    data = prepare({"train": made, "test": part})
    assert [data.label_names[label] for label in data.test.labels] == ["1", "2"] * 4
    codes = [row | {"label": ("07", "7")[index % 2]} for index, row in enumerate(rows(60))]
    assert prepare(codes).label_names == ("07", "7")


def test_order_of_the_models_classes_is_kept():
    """Its head was trained with it."""
    names = ["contradiction", "entailment", "neutral"]
    made = [row | {"label": index % 3} for index, row in enumerate(rows(60))]
    train = datasets.Dataset.from_list(made).cast_column("label", datasets.ClassLabel(names=names))
    data = prepare(train, model_names=("neutral", "contradiction", "entailment"))
    assert data.label_names == ("neutral", "contradiction", "entailment")
    labels = make_label_map([0, 1, 2], "x", declared=names, model_names=data.label_names)
    assert [labels.names[index] for index in labels.encode([0, 1, 2], "x")] == names
    assert prepare(train).label_names == tuple(names)


def test_labels_of_numpy_are_numbers():
    made = [{"text": f"text {index}", "label": number} for index, number in enumerate(np.arange(60) % 12)]
    assert prepare(made).label_names == tuple(map(str, range(12)))


def test_split_is_chosen():
    raw = load_data({"train": rows(4), "test": rows(2), "odd": rows(6)})
    assert len(raw.choose(None)) == 2
    assert len(raw.choose("odd")) == 6
    with pytest.raises(DataError, match="no split 'tset'. Its splits are: train, test, odd"):
        raw.choose("tset")
    with pytest.raises(DataError, match="Choose one of its splits with --split"):
        load_data({"train": rows(4), "odd": rows(6)}).choose(None)
