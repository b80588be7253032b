"""Danger as to every target: one table of facts for the labels of all, mistakes counted in each, and none of them silently harmless (issue 11 A.1)."""
import json
import re

import pandas as pd
import pytest
from conftest import draw_snake, without_seal
from mutate import mutated_files
from test_faults_person import make_bundle, run

from snakecls.core import UserError

SPECIES, GENERA, SIDES = ["Lampropeltis getula", "Micrurus fulvius"], ["Lampropeltis", "Micrurus", "Natrix"], ["left", "right"]
TARGETS = {"binomial": SPECIES, "genus": GENERA, "side": SIDES}
TABLE = "label,venomous,common_name\nLampropeltis getula,no,Kingsnake\nMicrurus fulvius,yes,Coral snake\nLampropeltis,no,\nMicrurus,yes,\n"
OF_SPECIES = {"Lampropeltis getula": {"venomous": False}, "Micrurus fulvius": {"venomous": True}}
OF_ALL = OF_SPECIES | {"Lampropeltis": {"venomous": False}, "Micrurus": {"venomous": True}, "Natrix": {"venomous": None}}
SAFE = {"binomial": ["Lampropeltis getula", "Natrix natrix"], "genus": GENERA}  # where no species is dangerous
OF_HARMLESS = {label: {"venomous": False} for label in SAFE["binomial"]}
KNOWN = OF_HARMLESS | {label: OF_ALL[label] for label in GENERA}


def sure(folder, answers: dict[str, dict[str, float]], facts: dict, targets: dict = TARGETS):
    "Write a bundle of several targets that answers every photo alike: label -> logit."
    import torch

    from snakecls.models.bundle import rebuild_network, write_bundle
    from snakecls.models.heads import find_heads

    first = next(iter(targets))
    described = {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(targets[first])}, "heads": {target: len(labels) for target, labels in targets.items()}}
    model = rebuild_network(described)
    with torch.no_grad():
        for (target, labels), head in zip(targets.items(), find_heads(model).values()):
            head.weight.zero_(), head.bias.copy_(torch.tensor([float(answers.get(target, {}).get(label, 0)) for label in labels]))
    return write_bundle(folder, model, {"model": described, "labels": targets[first], "targets": targets, "target": first, "problem": "several_targets", "photo": {"size": 64}, "label_facts": facts, "subject": "snake"})


def said_of(bundle, photo, folder):  # page, API, predict --json, its lines, its CSV
    "Ask everywhere."
    from snakecls.deploy.app import answer_json, show_answer
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(bundle)
    (row,) = json.loads(run("predict", photo, "--model", bundle, "--top", 1, "--csv", folder / "said.csv", "--json", cwd=folder).stdout)
    line = run("predict", photo, "--model", bundle, "--top", 1, cwd=folder)
    return show_answer(predictor, str(photo)), answer_json(predictor, str(photo))[0], row, line.stdout + line.stderr, pd.read_csv(folder / "said.csv").iloc[0]


def test_facts_of_every_target_come_from_one_table(tmp_path):
    from snakecls.models.bundle import read_bundle

    bundle = sure(tmp_path / "best", {}, {})
    (tmp_path / "facts.csv").write_text(TABLE)
    done = run("facts", "facts.csv", "--model", bundle, "--json", cwd=tmp_path)
    said, notes = json.loads(done.stdout), " ".join(json.loads(done.stdout)["notes"])
    assert {label: known["venomous"] for label, known in said["facts"].items()} == {"Lampropeltis getula": False, "Micrurus fulvius": True, "Lampropeltis": False, "Micrurus": True, "Natrix": None, "left": None, "right": None}
    assert "no row for any label of the target 'side'" in notes and "It is not known which labels of the target 'side' are venomous" in notes and "'genus'" not in notes and "fit no label" not in notes
    assert read_bundle(bundle).info.label_facts["Micrurus"] == {"venomous": True, "common_name": None}
    words = run("facts", "--model", bundle, cwd=tmp_path).stdout
    assert "Target 'genus': something is known about 2 of 3 labels. Venomous: 1 yes, 1 no, 1 not known (Natrix)." in words and "Target 'side': something is known about 0 of 2" in words
    values = json.loads((bundle / "bundle.json").read_text())
    assert list(values["label_facts"]) == ["Lampropeltis getula", "Micrurus fulvius", "Lampropeltis", "Micrurus"]
    values["label_facts"]["Micrurus"]["venomous"] = False  # sealed as the others are
    (bundle / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="facts about the labels are not those"):
        read_bundle(bundle)
    (tmp_path / "more.csv").write_text("label,venomous\nNatrix,no\nMicrurus fulvius,yes\n")
    assert run("facts", "more.csv", "--model", bundle, cwd=tmp_path).returncode == 0
    known = read_bundle(bundle).info.label_facts  # a yes outlives a table without its row, whatever is in the edited file
    assert known["Natrix"]["venomous"] is False and known["Micrurus fulvius"]["venomous"] is True and known.get("Micrurus", {}).get("venomous") is not True
    (tmp_path / "odd.csv").write_text("label,venomous\nMicrurus,mildly\n")
    done = run("facts", "odd.csv", "--model", bundle, cwd=tmp_path)
    assert done.returncode == 2 and "Micrurus" in done.stderr and "neither yes nor no" in done.stderr


def test_two_targets_that_share_a_name_share_its_facts_and_a_bundle_of_one_target_has_none_of_others(tmp_path):
    from snakecls.models.bundle import read_bundle

    targets = {"adult": ["Naja", "Natrix"], "young": ["Naja", "Natrix", "egg"]}
    bundle = sure(tmp_path / "best", {}, {}, targets)
    (tmp_path / "facts.csv").write_text("label,venomous\nNaja,yes\nNatrix,no\negg,no\n")
    assert run("facts", "facts.csv", "--model", bundle, cwd=tmp_path).returncode == 0
    assert read_bundle(bundle).info.label_facts == {"Naja": {"venomous": True}, "Natrix": {"venomous": False}, "egg": {"venomous": False}}
    with pytest.raises(UserError, match="label_facts"):
        make_bundle(tmp_path / "one", SPECIES, label_facts={"Micrurus": {"venomous": True}})


def test_a_bundle_of_several_targets_from_before_opens(tmp_path):
    from snakecls.models.bundle import read_bundle

    bundle = sure(tmp_path / "best", {}, OF_SPECIES)
    values = json.loads((bundle / "bundle.json").read_text())
    assert values["format"] == 2 and values["label_facts"] == OF_SPECIES and list(read_bundle(bundle).info.label_facts) == SPECIES
    (bundle / "bundle.json").write_text(json.dumps(without_seal(values)))
    assert read_bundle(bundle).info.label_facts == OF_SPECIES


def test_a_deadly_genus_is_told_though_the_species_is_harmless(photo, tmp_path):
    bundle = sure(tmp_path / "best", {"binomial": {"Lampropeltis getula": 9}, "genus": {"Micrurus": 9}}, KNOWN, SAFE)
    page, asked, row, line, cells = said_of(bundle, photo, tmp_path)
    assert "sc-caution" in page and "None of these is listed" not in page and re.search(r'data-target="genus".*?⚠ venomous', page, re.DOTALL)
    for answer in (asked, row):
        assert answer["dangers"]["venomous"]["among_them"] is True and answer["dangers"]["venomous"]["at_most"] > 0.9 and "Micrurus" in answer["caution"]["sentence"]
    assert asked["targets"]["genus"]["facts"]["venomous"] is True and row["targets"]["genus"][0]["facts"]["venomous"] is True
    assert "genus: Micrurus (venomous) >99%" in line and (cells["venomous_among_them"], cells["genus_venomous_among_them"]) == ("yes", "yes")


def test_a_label_without_an_explicit_no_is_not_known_wherever_it_is_shown(photo, tmp_path):
    harmless = {"binomial": {"Lampropeltis getula": 9}}
    bundle = sure(tmp_path / "best", harmless | {"genus": {"Natrix": 9}}, KNOWN, SAFE)  # a genus that has no fact beside others that have
    page, asked, row, line, cells = said_of(bundle, photo, tmp_path)
    assert "May be venomous. Keep away." in page and "Natrix" in asked["caution"]["sentence"] and "None of these is listed" not in page
    assert asked["dangers"]["venomous"]["among_them"] is None and row["dangers"]["venomous"]["among_them"] is None and row["dangers"]["venomous"]["at_most"] > 0.9
    assert "genus: Natrix (venomous: not known)" in line and cells["venomous_among_them"] == "not known" == cells["genus_venomous_among_them"]

    bundle = sure(tmp_path / "best", harmless | {"genus": {"Micrurus": 9}}, OF_HARMLESS, SAFE | {"side": SIDES})  # targets of which nothing is known
    page, asked, row, line, cells = said_of(bundle, photo, tmp_path)
    assert "Of the answer for genus and side it is not known whether it is venomous." in page and page.count("venomous: not known") == 2
    for answer in (asked, row):
        assert answer["dangers"]["venomous"]["among_them"] is None and answer["not_known_of"] == ["genus", "side"]
    assert asked["targets"]["genus"]["facts"] == {"venomous": None} == row["targets"]["side"][0]["facts"]
    assert "genus: Micrurus (venomous: not known)" in line and "It is not known which labels of the targets 'genus' and 'side' are venomous." in line
    assert cells["venomous_among_them"] == cells["genus_venomous_among_them"] == cells["side_venomous_among_them"] == "not known"

    bundle = sure(tmp_path / "best", harmless | {"genus": {"Lampropeltis": 9}}, KNOWN, SAFE)  # an explicit no for every label that is shown
    page, asked, row, line, cells = said_of(bundle, photo, tmp_path)
    assert "None of these is listed as venomous" in page and "not known" not in page + line and asked["caution"] is None and "not_known_of" not in row
    assert row["dangers"]["venomous"]["among_them"] is False and (cells["venomous_among_them"], cells["genus_venomous_among_them"]) == ("no", "no") and row["dangers"]["venomous"]["at_most"] < 0.01


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Three photos of each species, and a table that names genus but no side."
    folder = tmp_path_factory.mktemp("dangers")
    rows = []
    for number in range(6):
        draw_snake(number).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "binomial": SPECIES[number % 2], "genus": GENERA[number % 2]})
    pd.DataFrame(rows).to_csv(folder / "photos.csv", index=False)
    return folder


def test_evaluate_counts_every_target(photos, tmp_path):
    right, wrong = {"Micrurus fulvius": 9}, {"Lampropeltis": 9}  # every species is deadly to it, and every genus harmless
    bundle = sure(tmp_path / "best", {"binomial": right, "genus": wrong}, OF_ALL)
    done = run("evaluate", bundle, "--data", photos / "photos.csv", "--report", tmp_path / "page", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    counted = {danger["target"]: danger for danger in json.loads(done.stdout)["dangers"]}
    assert list(counted) == list(TARGETS) and json.loads(done.stdout)["scores"]["n"] == 6
    assert (counted["binomial"]["n"], counted["binomial"]["as_harmless"]) == (3, 0) and (counted["genus"]["n"], counted["genus"]["as_harmless"]) == (3, 3)
    assert counted["genus"]["classes"][0]["took"] == {"Lampropeltis": 3}
    assert (counted["side"]["known"], counted["side"]["counted"], counted["side"]["n"]) == (False, False, 0)
    text = run("evaluate", bundle, "--data", photos / "photos.csv", cwd=tmp_path).stdout
    assert "Target 'genus': 3 of 3 venomous photos got a first answer that is listed as not venomous" in text and "Micrurus: 3 of 3" in text
    assert "Target 'binomial': 0 of 3 venomous photos" in text and "Target 'side': of none of its labels is it known whether it is venomous" in text
    page = re.sub(r"&#39;", "'", (tmp_path / "page/report.html").read_text())
    for part in ("Target 'genus': 3 of 3 venomous photos were called not venomous", "Venomous, and called harmless (target 'genus')", "Target 'binomial': none of 3", "Target 'side': it is not known how often"):
        assert part in page, part


def test_photos_that_do_not_name_a_target_are_not_counted_as_harmless(photos, tmp_path):
    targets = {"binomial": SPECIES, "habit": ["burrows", "climbs"]}
    bundle = sure(tmp_path / "best", {}, OF_SPECIES | {"burrows": {"venomous": True}, "climbs": {"venomous": False}}, targets)
    done = run("evaluate", bundle, "--data", photos / "photos.csv", cwd=tmp_path)
    assert "Target 'habit': these photos do not say what is right for it" in done.stdout, done
    table = pd.read_csv(photos / "photos.csv").assign(habit=["burrows", None, "climbs", "burrows", None, "burrows"])
    table["path"] = [str(photos / path) for path in table["path"]]
    table.to_csv(tmp_path / "some.csv", index=False)
    said = json.loads(run("evaluate", bundle, "--data", tmp_path / "some.csv", "--tta", "flip", "--json", cwd=tmp_path).stdout)
    assert said["scores"]["n"] == 6 and [danger["n"] for danger in said["dangers"]] == [3, 3] and said["dangers"][1]["harmless"] == 1
    assert "2 of 6 photos do not say what is right for the target 'habit': only 4 are counted there." in said["notes"]


def test_what_a_label_says_itself_is_counted_without_facts(photos, tmp_path):
    targets = {"binomial": SPECIES, "effect": ["harmless", "venomous"]}
    bundle = sure(tmp_path / "best", {"effect": {"harmless": 9}}, {}, targets)
    table = pd.read_csv(photos / "photos.csv").assign(effect=["harmless", "venomous"] * 3)
    table["path"] = [str(photos / path) for path in table["path"]]
    table.to_csv(tmp_path / "effects.csv", index=False)
    done = run("evaluate", bundle, "--data", tmp_path / "effects.csv", cwd=tmp_path)
    assert "Target 'effect': 3 of 3 venomous photos got a first answer that is listed as not venomous" in done.stdout and "Target 'binomial': of none of its labels is it known" in done.stdout, done


def test_a_run_with_several_targets_takes_its_facts_from_the_experiment_and_its_report_counts_them(photos, tmp_path):
    from snakecls.evaluate.report_data import target_part
    from snakecls.models.bundle import read_bundle
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.run import run_experiment

    rows = []
    for number in range(24):
        draw_snake(number).save(tmp_path / f"{number}.png")
        rows.append({"path": str(tmp_path / f"{number}.png"), "binomial": SPECIES[number % 2], "type of genus": GENERA[number % 2], "side": SIDES[number // 2 % 2], "split": ["train", "train", "valid"][number // 4 % 3]})
    pd.DataFrame(rows).to_csv(tmp_path / "photos.csv", index=False)
    (tmp_path / "facts.csv").write_text(TABLE)
    values = {"name": "facts", "seed": 1, "data": {"source": str(tmp_path / "photos.csv"), "target": ["side", "binomial", "type of genus"], "facts": str(tmp_path / "facts.csv")}, "model": {"arch": "test_resnet", "weights": "none"},
              "train": {"num_workers": 0, "device": "cpu"}, "monitor": "f1_macro", "schedule": [{"size": 32, "epochs": 0, "head": "probe", "bs": 8}]}
    told = []
    done = run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=None, say=told.append)
    assert any("no row for any label of the target 'side'" in line for line in told)
    known = read_bundle(done.run / "best").info.label_facts
    assert known["Micrurus"]["venomous"] is True and known["Lampropeltis getula"]["venomous"] is False and "left" not in known
    page = re.sub(r"&#39;", "'", (done.run / "report.html").read_text())
    for target, file in (("binomial", "predictions-valid-binomial"), ("type of genus", f"predictions-valid-{target_part('type of genus')}")):
        table = pd.read_parquet(done.run / f"{file}.parquet")
        harmless = int((table["label"].str.startswith("Micrurus") & table["predicted"].str.startswith("Lampro")).sum())
        assert f"Target '{target}': {harmless or 'none'} of 4 venomous validation photos" in page
    assert "Target 'side': it is not known how often something venomous is called harmless" in page
    again = json.loads(run("evaluate", done.run / "best", "--json", cwd=tmp_path).stdout)["dangers"]  # its own photos
    assert [(danger["target"], danger["n"]) for danger in again] == [("side", 0), ("binomial", 4), ("type of genus", 4)]


def test_the_page_of_a_space_says_which_targets_have_no_facts(tmp_path):
    from snakecls.deploy.hub import _space_readme
    from snakecls.models.bundle import read_bundle

    assert "It is not known which labels of the target 'side' are venomous." in _space_readme(read_bundle(sure(tmp_path / "best", {}, OF_ALL)), "me/snakes")


def test_an_ensemble_keeps_the_facts_of_every_target(tmp_path):
    from snakecls.deploy.predict import EnsemblePredictor

    careless = OF_ALL | {"Micrurus": {"venomous": False}}
    bundles = [sure(tmp_path / "a", {}, careless), sure(tmp_path / "b", {}, OF_ALL)]
    assert EnsemblePredictor(bundles).info.label_facts["Micrurus"]["venomous"] is True


def test_300_damages_to_a_table_of_facts_of_several_targets(tmp_path):
    from snakecls.experiment.facts import read_facts

    expected, read = {"Lampropeltis getula": False, "Micrurus fulvius": True, "Lampropeltis": False, "Micrurus": True}, 0
    for damaged in mutated_files(TABLE.encode(), seed=21):
        (tmp_path / "facts.csv").write_bytes(damaged)
        try:
            facts, _ = read_facts(tmp_path / "facts.csv", SPECIES, target="binomial", others={"genus": GENERA, "side": SIDES})
        except UserError as e:
            assert len(str(e).splitlines()) == 1, e
            continue
        read += 1
        for label, known in facts.items():
            state = known.get("venomous")
            assert (state is None or isinstance(state, bool)) and label in {*SPECIES, *GENERA, *SIDES}
            if state is not None and state is not expected.get(label):  # never a no of its own making
                assert any(line.split(b",")[0].strip(b'" \xef\xbb\xbf').decode("latin-1").casefold() == label.casefold() and (b",no," in line or b",0," in line or b",yes," in line) for line in damaged.replace(b"\r", b"\n").split(b"\n")), damaged
    assert read > 30


HEDGED = ["unknown", "none", "?", "unclear", "uncertain", "na", "", "not harmless", "not edible", "non-edible", "nicht essbar", "non comestible", "never edible", "edible?", "harmless?", "!harmless", "conditionally edible",
          "edible when cooked", "edible, deadly raw", "mildly venomous, harmless", "not entirely harmless", "rarely harmless", "mostly harmless", "harmless to humans", "not proven harmless", "non-toxic when cooked", "not dangerous unless provoked", "never harmful", "low", "safe?"]


@pytest.mark.parametrize("target", ["effect", "use", "edible", "edibility", "safety", "venomous", "danger", "harmless", "not edible", "not venomous", "poisonous", "toxicity", "type", "venom_type", "genus"])
def test_a_negated_a_hedged_and_an_unknown_label_of_a_further_target_is_never_a_no(target):
    from snakecls.data.label_facts import DANGERS
    from snakecls.data.target_dangers import target_state

    told = [(label, key) for label in HEDGED for key in [*DANGERS, "stinging"] if target_state(target, label, {}, key) is False]
    assert not told


@pytest.mark.parametrize(("target", "label", "key", "state"), [("effect", "harmless", "venomous", False), ("effect", "Harmless", "poisonous", False), ("venomous", "no", "venomous", False), ("is_venomous", "0", "venomous", False), ("venomous", "no", "poisonous", None),
                                                               ("use", "edible", "poisonous", False), ("use", "edible", "venomous", None), ("edible", "yes", "poisonous", False), ("edible", "no", "poisonous", True), ("effect", "non-venomous", "venomous", False), ("not edible", "yes", "poisonous", True),
                                                               ("effect", "not harmless", "venomous", True), ("use", "not edible", "poisonous", True), ("danger", "no", "venomous", None), ("poisonous", "non-venomous", "poisonous", None), ("harmless (1=dangerous)", "1", "dangerous", None), ("genus", "no", "venomous", None)])
def test_a_plain_no_and_a_plain_yes_of_a_further_target_are_told(target, label, key, state):
    from snakecls.data.target_dangers import target_state

    said = target_state(target, label, {}, key)
    assert said is state or (state is None and said is True)


def test_unknown_and_not_edible_are_no_all_clear_anywhere(photo, photos, tmp_path):
    harmless = {"binomial": {"Lampropeltis getula": 9}}
    words = {"venomous": ["no", "unknown", "yes"], "effect": ["harmless", "not harmless"], "use": ["edible", "not edible"]}
    for target, label, key, state in [("venomous", "unknown", "venomous", None), ("effect", "not harmless", "venomous", True), ("use", "not edible", "poisonous", True)]:
        (folder := tmp_path / target).mkdir()
        facts = {species: known | {"poisonous": False} for species, known in OF_HARMLESS.items()}
        page, asked, row, _, cells = said_of(sure(folder / "best", harmless | {target: {label: 9}}, facts, {"binomial": SAFE["binomial"], target: words[target]}), photo, folder)
        assert row["targets"][target][0]["facts"][key] is asked["targets"][target]["facts"][key] is state and row["dangers"][key]["at_most"] > 0.9
        assert row["dangers"][key]["among_them"] is state and row["caution"] and "None of these" not in page and cells[f"{key}_among_them"] == cells[f"{target}_{key}_among_them"] == {True: "yes", None: "not known"}[state]
    table = pd.read_csv(photos / "photos.csv").assign(venomous="unknown", effect="not harmless", use="not edible")
    table["path"] = [str(photos / path) for path in table["path"]]
    table.to_csv(tmp_path / "table.csv", index=False)
    bundle = sure(tmp_path / "all", harmless | {"venomous": {"no": 9}, "effect": {"harmless": 9}, "use": {"edible": 9}}, {}, {"binomial": SPECIES} | words)
    counted = {(danger["target"], danger["danger"]): danger for danger in json.loads(run("evaluate", bundle, "--data", tmp_path / "table.csv", "--json", cwd=tmp_path).stdout)["dangers"]}
    assert all(danger["harmless"] == 0 for danger in counted.values()) and counted["venomous", "venomous"]["unknown"] == 6 and counted["effect", "venomous"]["as_harmless"] == 6


def test_a_negated_harmless_among_facts_takes_a_no_back():
    from snakecls.data.label_facts import clean_facts

    for name, value in [("not harmless", True), ("risk", "not harmless"), ("bite", "rarely harmless")]:
        assert clean_facts({"Boiga": {"venomous": "no", name: value}})["Boiga"]["venomous"] is None
    assert clean_facts({"Boiga": {"venomous": "no", "bite": "harmless"}})["Boiga"]["venomous"] is False


def judged(first: dict[str, float], others: dict[str, dict[str, float]], facts: dict, subject: str = "", target: str = "kind"):
    "Judge given probabilities as the page and predict do: judgement, page."
    from types import SimpleNamespace

    from snakecls.data.label_facts import clean_facts, model_dangers
    from snakecls.deploy.answer import answer_html, judge
    from snakecls.deploy.predict import _rank_labels

    info = SimpleNamespace(labels=list(first), target=target, targets={target: list(first)} | {name: list(probs) for name, probs in others.items()}, label_facts=clean_facts(facts), danger_columns=[], subject=subject, name="", title="", problem="several_targets")
    shown = _rank_labels(list(first.values()), info.labels, facts=info.label_facts)
    ranked = {name: _rank_labels(list(probs.values()), list(probs), top=10**6, facts=info.label_facts) for name, probs in others.items()}
    said = judge(info, list(first.values()), shown, ranked)
    return said, re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer_html(shown, said.dangers, others={name: guesses[0] for name, guesses in ranked.items()}, known=model_dangers(info)[1], subject=subject, judged=said)))


def facts_of(**labels: str) -> dict:  # label -> venomous, poisonous: y, n or -
    return {label: {key: {"y": True, "n": False, "-": None}[word] for key, word in zip(("venomous", "poisonous"), words)} for label, words in labels.items()}


@pytest.mark.parametrize("subject", ["", "snake", "mushroom"])
@pytest.mark.parametrize("poisonous", ["y", "-"])
def test_a_caution_about_one_danger_does_not_hide_another_in_a_further_target(subject, poisonous):
    said, page = judged({"A": 0.9, "B": 0.1}, {"genus": {"Naja": 0.95, "Elaphe": 0.05}}, facts_of(A="n" + poisonous, B="nn", Naja="yn", Elaphe="nn"), subject)
    whole = " ".join(said.caution)
    for part in ("oisonous. Do not eat or touch it.", "enomous. Keep away.", "The answer for genus is Naja (95%), which is venomous."):
        assert part in whole and part in page
    said, _ = judged({"A": 0.9, "B": 0.1}, {"genus": {"Naja": 0.95, "Elaphe": 0.05}}, facts_of(A="yn", B="nn", Naja="ny", Elaphe="nn"), subject)
    assert "Venomous. Keep away." in " ".join(said.caution) and "May be poisonous. Do not eat or touch it. The answer for genus is Naja (95%), which is poisonous." in " ".join(said.caution)


def test_two_dangers_with_one_advice_are_told_once_for_a_target():
    facts = {"A": {"venomous": False, "medically_important": False}, "Naja": {"venomous": True, "medically_important": True}, "Elaphe": {"venomous": False, "medically_important": False}}
    said, _ = judged({"A": 1.0}, {"genus": {"Naja": 0.34, "Elaphe": 0.66}}, facts, "snake")
    assert said.caution == ("May be dangerously venomous. Keep away.", "The answer for genus may be Naja (34%), which is dangerously venomous.")


@pytest.mark.parametrize(("naja", "other"), [(0.048, 0.048), (0.03, 0.03), (0.049, 0.0), (0.0, 0.049), (0.02, 0.02), (0.06, 0.0), (0.0, 0.06), (0.004, 0.0)])
def test_a_further_target_is_judged_no_more_leniently_than_the_first(naja, other):
    genus = {"Elaphe": 1 - naja - other, "K": 0.0, "L": 0.0, "Naja": naja, "X": other}
    facts = facts_of(A="n", B="n", K="n", L="n", Elaphe="n", Naja="y")
    there, page = judged({"A": 0.9, "B": 0.1}, {"genus": genus}, facts, "snake")
    first, own = judged(genus, {"kind": {"A": 0.9, "B": 0.1}}, facts, "snake", "genus")
    if {"Naja", "X"} & set(sorted(genus, key=genus.get, reverse=True)[:3]):  # shown in the first target, it is always told
        assert (there.caution is not None) is (naja + other >= 0.05)
    else:
        assert (there.caution is None) is (first.caution is None)
    assert there.at_most["venomous"] == pytest.approx(naja + other) == pytest.approx(first.at_most["venomous"]) and own
    if there.caution is None:
        assert "other labels, together with" in page and there.among_them["venomous"] is False
    else:
        assert there.among_them["venomous"] is (True if naja >= 0.05 else None)


def test_a_first_target_that_names_danger_is_told_alike_by_page_predict_evaluate_and_facts(photo, photos, tmp_path):
    effects = ["harmless", "venomous", "unknown"]
    bundle = sure(tmp_path / "best", {"effect": {"harmless": 9}}, {}, {"effect": effects, "genus": GENERA})
    page, asked, row, line, cells = said_of(bundle, photo, tmp_path)
    assert "⚠ venomous: not known" in page and "May be venomous. Keep away." in page and "harmless (venomous: not known)" in line and cells["venomous_among_them"] == "yes"  # among the three
    assert asked["facts"] == {"venomous": None} == row["top"][0]["facts"]
    table = pd.read_csv(photos / "photos.csv").assign(effect=effects * 2)
    table["path"] = [str(photos / path) for path in table["path"]]
    table.to_csv(tmp_path / "effects.csv", index=False)
    counted = {danger["target"]: danger for danger in json.loads(run("evaluate", bundle, "--data", tmp_path / "effects.csv", "--json", cwd=tmp_path).stdout)["dangers"]}["effect"]
    assert (counted["n"], counted["as_harmless"], counted["harmless"], counted["unknown"]) == (2, 2, 0, 4)  # 'harmless' is no truth, but an answer
    words = run("facts", "--model", bundle, cwd=tmp_path).stdout
    assert "Target 'effect': something is known about 1 of 3 labels. Venomous: 1 yes, 0 no, 2 not known (harmless, unknown)." in words
    assert json.loads(run("facts", "--model", bundle, "--json", cwd=tmp_path).stdout)["facts"] == {label: {"venomous": True if label == "venomous" else None} for label in [*effects, *GENERA]}

    said, page = judged({"no": 0.95, "yes": 0.05}, {"side": {"left": 0.5, "right": 0.5}}, {}, "snake", "venomous")
    assert "yes, among the possible answers, is venomous. Treat every snake as venomous." in page and said.among_them["venomous"] is True

    bundle = sure(tmp_path / "sure", {"effect": {"venomous": 9}}, {}, {"effect": effects, "genus": GENERA})
    page, asked, row, _, _ = said_of(bundle, photo, tmp_path)
    assert "Venomous. Keep away." in page and asked["facts"]["venomous"] is True is row["top"][0]["facts"]["venomous"]


def test_facts_counts_what_the_labels_of_a_further_target_say_themselves(tmp_path):
    bundle = sure(tmp_path / "best", {}, OF_SPECIES, {"binomial": SPECIES, "venomous": ["yes", "no", "unknown"]})
    words = run("facts", "--model", bundle, cwd=tmp_path).stdout
    assert "Target 'venomous': something is known about 2 of 3 labels. Venomous: 1 yes, 1 no, 1 not known (unknown)." in words


def test_labels_that_stand_in_several_targets_are_told(tmp_path):
    from snakecls.experiment.facts import read_facts

    (tmp_path / "facts.csv").write_text("label,venomous\nNatrix,no\nyes,no\nno,no\n")
    _, notes = read_facts(tmp_path / "facts.csv", ["Natrix"], target="genus", others={"adult": ["yes", "no"], "fangs": ["yes", "no"]})
    (note,) = [note for note in notes if "every target that has it" in note]
    assert "'yes', 'no' of the targets 'adult' and 'fangs'" in note
    _, notes = read_facts(tmp_path / "facts.csv", ["Natrix"], target="genus", others={"adult": ["yes", "no"], "fangs": ["long", "short"]})
    assert not [note for note in notes if "every target that has it" in note]


def test_a_target_that_is_blind_for_one_danger_is_named_with_it(photo, tmp_path):
    from snakecls.deploy.answer import header_html
    from snakecls.models.bundle import read_bundle

    facts = facts_of(**dict.fromkeys(SAFE["binomial"], "nn")) | {label: {"venomous": False} for label in GENERA}
    bundle = sure(tmp_path / "best", {"binomial": {"Lampropeltis getula": 9}}, facts, SAFE)
    page, _, row, line, _ = said_of(bundle, photo, tmp_path)
    assert "Of the answer for genus it is not known whether it is poisonous." in page and row["dangers"]["venomous"]["among_them"] is False and row["dangers"]["poisonous"]["among_them"] is None
    assert "It is not known which labels of the target 'genus' are poisonous." in line
    assert "It is not known which labels of the target &#39;genus&#39; are poisonous." in header_html(read_bundle(bundle).info)


def test_a_first_target_named_after_a_danger_keeps_the_no_of_its_facts():
    said, page = judged({"Natrix": 0.95, "Coluber": 0.05}, {"side": {"left": 0.5, "right": 0.5}}, facts_of(Natrix="n", Coluber="n"), "snake", "venomous_snake")
    assert said.among_them["venomous"] is None and said.caution is None and page.count("not listed as venomous") == 2
    said, page = judged({"Natrix": 0.95, "Coluber": 0.05}, {"side": {"left": 0.5, "right": 0.5}}, {}, "snake", "venomous_snake")
    assert said.caution[0] == "Venomous. Keep away." and "not listed" not in page


def test_what_a_label_names_is_not_hidden_by_another_danger_among_its_facts():
    facts = {"A": {"poisonous": False}, "B": {"poisonous": False}, "venomous": {"poisonous": True}, "neither": {"poisonous": False}}
    said, _ = judged({"A": 0.9, "B": 0.1}, {"use": {"venomous": 0.9, "neither": 0.1}}, facts, "mushroom")
    assert said.among_them["venomous"] is True is said.among_them["poisonous"] and "which is venomous" in said.caution[1] and "which is poisonous" in " ".join(said.caution)


@pytest.mark.parametrize("label", ["deadly", "dangerous", "toxic", "giftig", "hazardous", "mortal"])
@pytest.mark.parametrize("rows", [[("A", "no"), ("B", "no"), ("{}", "no"), ("harmless", "no")], [("A", "no"), ("B", "no"), ("{}", ""), ("harmless", "")]], ids=["no", "empty"])
def test_a_row_of_facts_does_not_silence_what_a_label_says_itself(label, rows):
    from types import SimpleNamespace

    from snakecls.data.target_dangers import target_state
    from snakecls.deploy.answer import judge
    from snakecls.deploy.predict import Prediction
    from snakecls.evaluate.danger import count_target_dangers

    facts = {name.format(label): {"venomous": {"no": False, "": None}[cell]} for name, cell in rows}
    info = SimpleNamespace(labels=["A", "B"], label_facts=facts, targets={"species": ["A", "B"], "effect": [label, "harmless"]}, target="species", subject="snake", danger_columns=[], problem="several_targets")
    first = [Prediction(name, prob, facts[name]) for name, prob in (("A", 0.99), ("B", 0.01))]
    judged = judge(info, [0.99, 0.01], first, {"effect": [Prediction(name, prob, facts[name]) for name, prob in ((label, 0.99), ("harmless", 0.01))]})
    assert judged.for_programs()["caution"] is not None and any(danger["among_them"] for danger in judged.for_programs()["dangers"].values())
    assert any(target_state("effect", label, facts[label], key) for key in judged.dangers)
    table = pd.DataFrame({"path": ["a.jpg"], "label": [label], "predicted": ["harmless"], "p_0": [0.1], "p_1": [0.9]})
    counted = [row for row in count_target_dangers({"effect": table}, info.targets, facts) if row["target"] == "effect" and row["n"] == 1]
    assert counted, "a photo of something that its label calls dangerous is counted"


@pytest.mark.parametrize("facts, key, state", [
    ({"poisonous": False, "toxic": True}, "poisonous", None), ({"venomous": False, "toxic": True}, "venomous", None), ({"venomous": False, "deadly": True}, "venomous", None),
    ({"venomous": False, "poisonous": True, "toxic": True}, "venomous", False), ({"venomous": False, "poisonous": True, "toxic": True}, "poisonous", True), ({"venomous": False, "toxic": False}, "venomous", False)])
def test_a_no_that_another_column_takes_back_is_not_known(facts, key, state):
    from snakecls.data.label_facts import danger_state

    assert danger_state(facts, key) is state


@pytest.mark.parametrize("target, label", [
    *[(target, "no") for target in ("safe", "safe_to_eat", "benign", "inoffensive", "edible")], ("safe", "0"), ("unbedenklich", "nein"),
    *[("effect", label) for label in ("not safe", "not benign", "nicht unbedenklich", "non-venomous but deadly", "venomous but not dangerous", "harmless to adults, deadly to children",
                                      "isn't harmless", "dangerous, not venomous", "keineswegs harmlos", "alles andere als harmlos", "pas inoffensif", "cannot be called harmless", "not a harmless snake")]])
def test_what_is_not_safe_is_a_danger(target, label):
    from snakecls.data.label_facts import target_danger

    assert target_danger(target, label) is not None


@pytest.mark.parametrize("label", ["safe", "benign", "harmless", "non-venomous", "not venomous or poisonous", "not dangerous", "malignant", "left"])
def test_what_is_safe_is_none(label):
    from snakecls.data.label_facts import target_danger

    assert target_danger("effect", label) is None
