"Facts about danger: a column that sounds of it is read or refused, a no is never made up, and whatever the subject is called, its danger is spoken of (issue 11 A)."
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import without_seal
from test_faults_person import answer, make_bundle, run

from snakecls.core import UserError
from snakecls.data.label_facts import clean_facts, model_dangers, target_danger
from snakecls.experiment.facts import read_facts

LABELS = ["Naja naja", "Natrix natrix", "Coronella austriaca"]


def facts_of(*args, **kwargs):
    return read_facts(*args, **kwargs)[0]


def table(folder: Path, text: str) -> Path:
    (folder / "facts.csv").write_text(text, encoding="utf-8")
    return folder / "facts.csv"


@pytest.mark.parametrize("header, cell", [(name, "yes") for name in (
    "highly_venomous", "deadly_poisonous", "poisonous_when_raw", "lethal_bite", "life_threatening", "fatalities", "can kill", "envenomation", "Giftigkeit", "ядовитый", "有毒", "harmless?", "Edible?", "safe to eat", "usually harmless", "unbedenklich")]
    + [("danger_level", "high"), ("Toxicity level", "3"), ("edibility", "deadly"), ("class", "poisonous"), ("bite", "deadly"), ("venom_type", "neurotoxic"), ("effect", "causes death"), ("bite severity", "4"), ("can kill", "1"), ("fatalities", "12")])
def test_a_column_that_sounds_of_danger_is_refused_by_name_beside_a_known_one(header, cell, photo, tmp_path):
    with pytest.raises(UserError, match="venomous") as refused:
        facts_of(table(tmp_path, f"label,venomous,{header}\nNaja naja,no,{cell}\nNatrix natrix,no,\nCoronella austriaca,no,\n"), LABELS)
    assert f"'{header}'" in str(refused.value)
    if header not in ("harmless?", "Edible?", "safe to eat", "usually harmless", "unbedenklich"):  # there yes is no word of danger
        bundle = make_bundle(tmp_path / "b", LABELS, label_facts={label: {"venomous": False, header: cell if label == "Naja naja" else ""} for label in LABELS})
        page = answer(bundle, [0.5, 0.3, 0.2], photo)  # a bundle by hand starts, and nobody is told that it is harmless
        assert "None of these is listed" not in page and "May be venomous" in page


@pytest.mark.parametrize("header", ["has_venom", "isVenomous", "VenomousSnake", "Is it venomous?", "venomous (1 = yes)", "#venomous", "venomous\u200b", "v\u0435nomous", "peçonhenta", "Venom?", "is_venomous"])
def test_a_header_that_means_venomous_is_read(header, tmp_path):
    assert facts_of(table(tmp_path, f"label,{header}\nNaja naja,yes\nNatrix natrix,no\n"), LABELS) == {"Naja naja": {"venomous": True}, "Natrix natrix": {"venomous": False}}


@pytest.mark.parametrize("header", ["Venomous (1 = no)", "Venomous (0=yes, 1=no)", "venomous (yes=0, no=1)", "venomous (0=venomous)", "venomous 0=dangerous", "dangerous: 0=yes", "venomous (1=harmless)", "venomous 1=nonvenomous", "deadly 1=no", "poisonous 0=poisonous", "venomous (Y = no)", "venomous (x = harmless)",
                                   "venomous (1 means harmless)", "venomous 1: no", "venomous (0/1 = yes/no)", "venomous? no=1", "venomous (inverse)", "venomous reversed", "not venomous?", "giftig (1 = nein)", "giftig (0=ja)", "venimeux (0 = oui)", "venomous yes/no 0/1", "venomous (1 != yes)", "venomous (1≠yes)", "venomous (1 -> no)", "MIVS (1=no)", "venemous 1=no", "Venomous (１＝no)"])
def test_a_header_that_turns_its_cells_round_is_refused_and_never_a_no(header, photo, tmp_path):
    with pytest.raises(UserError) as refused:
        facts_of(table(tmp_path, f'label,"{header}"\nNaja naja,0\nNatrix natrix,1\n'), LABELS)
    assert f"'{header}'" in str(refused.value)
    with pytest.raises(UserError):  # nor does it help to name it
        facts_of(table(tmp_path, f'label,"{header}"\nNaja naja,0\nNatrix natrix,1\n'), LABELS, danger_columns=[header])
    cobra, other = (clean_facts({"Naja naja": {"venomous": False, header: value}})["Naja naja"] for value in (0, 1))
    assert cobra["venomous"] is None and (header == "not venomous?" or other["venomous"] is None)
    bundle = make_bundle(tmp_path / "b", LABELS, label_facts={label: {header: 1 - (label == "Naja naja")} for label in LABELS})
    page = answer(bundle, [0.5, 0.3, 0.2], photo)
    assert "None of these is listed" not in page and "May be" in page
    assert target_danger(header, "0") and (header == "not venomous?" or target_danger(header, "1"))


@pytest.mark.parametrize("header", ["venomous (1=yes, 0=no)", "venomous (yes=1, no=0)", "venomous (0=harmless)", "venomous (x = venomous)", "venomous (y/n)", "venomous [1=venomous; 0=non-venomous]", "venomous (yes/no, 1/0)", "venomous (1=present)", "venomous (1=venomous to humans)", "venimeux (1 = oui)"])
def test_a_header_that_explains_its_cells_plainly_is_read(header, tmp_path):
    assert facts_of(table(tmp_path, f'label,"{header}"\nNaja naja,1\nNatrix natrix,0\n'), LABELS) == {"Naja naja": {"venomous": True}, "Natrix natrix": {"venomous": False}}


@pytest.mark.parametrize("header, cell", [("endangered", "yes"), ("venom_source_url", "https://example.org/venomous"), ("skill", "yes"), ("gift_shop", "yes"), ("common_name", "Deadly viper"), ("genus", "Toxicodendron"), ("notes", "A deadly snake of the forests"), ("dishwasher safe", "yes")])
def test_other_columns_are_facts(header, cell, tmp_path):
    facts, notes = read_facts(table(tmp_path, f"label,venomous,{header}\nNaja naja,yes,{cell}\n"), LABELS)
    assert facts["Naja naja"]["venomous"] is True and header in facts["Naja naja"]
    assert any(header in note for note in notes) == (header in ("endangered", "venom_source_url", "notes"))


@pytest.mark.parametrize("subject", ["snakes", "Snake ", "\n\n", "venomous snake", "sea snake", "Philippine snakes", "serpent", "viper", "Schlange", "animal", "reptiles", "species"])
def test_no_name_of_a_subject_switches_the_warnings_off(subject, photo, tmp_path):
    bundle = make_bundle(tmp_path / "b", LABELS, subject=subject)
    page = answer(bundle, [0.4, 0.3, 0.3], photo)
    assert "May be venomous" in page and "fills most of the picture" not in page
    asked = run("predict", photo, "--model", bundle, cwd=tmp_path)
    assert "knows nothing about venom" in asked.stderr


@pytest.mark.parametrize("labels, danger", [(["venomous", "non-venomous"], "venomous"), (["edible", "poisonous"], "poisonous"), (["Toxic Plant", "Nontoxic Plant"], "toxic"), (["Deathcap", "x", "y"], "poisonous"), (["brown recluse", "x", "y"], "venomous"),
                                           (["Kreuzotter", "x", "y"], "venomous"), (["Fliegenpilz", "Steinpilz"], "poisonous"), (["Vipère aspic", "Couleuvre verte"], "venomous"), (["NajaNaja", "x"], "venomous"), (["poison ivy", "x", "y"], "poisonous"),
                                           (["Boletus edulis", "Cantharellus cibarius", "Omphalotus olearius"], "poisonous"), (["Lampropeltis getula", "Pantherophis guttatus", "Thamnophis sirtalis"], "venomous"),
                                           (["Hemaris tityus", "Hemaris fuciformis", "Vanessa atalanta"], None), (["python", "javascript"], None), (["feather boa", "scarf"], None), (["shirt", "shoe"], None), (["otter", "seal"], None)])
def test_labels_give_a_danger_away_and_a_moth_is_no_scorpion(labels, danger):
    assert model_dangers(SimpleNamespace(labels=labels))[0] == ((danger,) if danger else ())


@pytest.mark.parametrize("labels, column, cells, said, unsaid", [
    (LABELS, "poisonous", ["no"] * 3, "May be venomous", "None of these"), (LABELS, "giftig", ["ja", "nein", "nein"], "Venomous. Keep away.", "eat"), (LABELS, "toxic", ["no"] * 3, "None of these is listed as venomous", "eat"),
    (LABELS, "deadly", ["no"] * 3, "May be venomous", "None of these"), (LABELS, "dangerous", ["no"] * 3, "May be venomous", "None of these"), (LABELS, "MIVS", ["0"] * 3, "May be venomous", "None of these"), (LABELS, "has venom", ["yes", "no", "no"], "Venomous. Keep away.", "Be careful"),
    (["Amanita phalloides", "Boletus edulis", "Russula emetica"], "venomous", ["no"] * 3, "May be poisonous. Do not eat", "None of these"), (["Amanita phalloides", "Boletus edulis", "Russula emetica"], "deadly", ["yes", "no", "no"], "Poisonous. Do not eat", "Keep away"),
    (["one", "two", "three"], "deadly", ["no"] * 3, "May be dangerous", "None of these"), (["one", "two", "three"], "fatal", ["yes", "no", "no"], "Dangerous. Keep away.", "None of these")])
def test_the_danger_of_the_subject_is_spoken_of(labels, column, cells, said, unsaid, photo, tmp_path):
    facts = facts_of(table(tmp_path, f"label,{column}\n" + "".join(f"{label},{cell}\n" for label, cell in zip(labels, cells))), labels)
    page = answer(make_bundle(tmp_path / "b", labels, label_facts=facts), [0.5, 0.3, 0.2], photo)
    assert said in page and unsaid not in page


def test_several_targets_are_all_judged():
    first = {"labels": ["Chad", "Togo"], "targets": {"country": ["Chad", "Togo"]}}
    assert model_dangers(SimpleNamespace(**first))[0] == ()
    for name, labels, danger in (("binomial", ["Naja naja", "Natrix natrix"], "venomous"), ("poisonous", ["yes", "no"], "poisonous"), ("kind", ["harmless", "dangerous"], "dangerous")):
        dangers, known, _ = model_dangers(SimpleNamespace(**first | {"targets": first["targets"] | {name: labels}}))
        assert dangers[0] == danger and not known


def test_an_opposite_is_no_danger_column_and_no_chip(photo, tmp_path):
    for name in ("harmless", "non-venomous", "Edible?"):
        with pytest.raises(UserError, match="opposite"):
            facts_of(table(tmp_path, f"label,{name}\nNaja naja,yes\n"), LABELS, danger_columns=[name])
    names = ("harmless?", "Edible?", "safe to eat", "completely harmless", "usually harmless", "safe to handle", "unbedenklich")
    page = answer(make_bundle(tmp_path / "b", LABELS, label_facts={"Naja naja": dict.fromkeys(names, True)}), [0.9, 0.06, 0.04], photo)
    assert not [name for name in names if name in page]


def test_rows_that_contradict_are_refused_and_the_labels_are_found(tmp_path):
    for text, labels in (("label,venomous\nNaja naja,no\nnaja naja,yes\n", ["Naja naja"]), ("label,venomous\nPhilippine Cobra (Naja philippinensis),no\nNaja philippinensis,yes\n", ["Philippine Cobra (Naja philippinensis)"])):
        with pytest.raises(UserError, match="2 rows for .* that differ"):
            facts_of(table(tmp_path, text), labels)
    facts, notes = read_facts(table(tmp_path, "id,species,venomous,common_name\n1,Naja naja,yes,nan\n2,Natrix natrix,no, \n"), LABELS)
    assert facts == {"Naja naja": {"id": "1", "venomous": True, "common_name": None}, "Natrix natrix": {"id": "2", "venomous": False, "common_name": None}} and not notes
    with pytest.raises(UserError, match="no column beside its labels"):
        facts_of(table(tmp_path, "label\nNaja naja\n"), LABELS)
    with pytest.raises(UserError, match="is 'mildly', which is neither yes nor no"):
        facts_of(table(tmp_path, "label,venomous\nNaja naja,mildly\n"), LABELS)


def test_a_table_of_names_keeps_the_dangers_and_says_so(tmp_path):
    bundle = make_bundle(tmp_path / "best", LABELS, label_facts={"Naja naja": {"venomous": True}, "Natrix natrix": {"venomous": False}})
    table(tmp_path, "label,common_name\nNaja naja,Indian cobra\n")
    done = run("facts", "facts.csv", "--model", "best", cwd=tmp_path)
    assert done.returncode == 0 and "keeps what it knew" in done.stderr
    stored = json.loads((bundle / "bundle.json").read_text())["label_facts"]
    assert stored["Naja naja"] == {"venomous": True, "common_name": "Indian cobra"} and stored["Natrix natrix"]["venomous"] is False
    table(tmp_path, "label,venomous\nNaja naja,no\n")
    assert "is no more, such as 'Naja naja'" in run("facts", "facts.csv", "--model", "best", cwd=tmp_path).stderr


def test_a_mean_of_models_takes_a_yes_before_not_known_before_a_no(tmp_path):
    from snakecls.models.bundle import read_bundle
    from snakecls.workflow.ensemble import soup_runs

    said = [[False, False, False], [True, False, None]]
    bundles = [make_bundle(tmp_path / str(i) / "best", LABELS, label_facts={label: {"venomous": state} for label, state in zip(LABELS, states)}) for i, states in enumerate(said)]
    facts = read_bundle(soup_runs(bundles, tmp_path / "mean")).info.label_facts
    assert [facts[label]["venomous"] for label in LABELS] == [True, False, None]


def test_several_models_are_as_careful_as_the_most_careful(tiny_bundle, tmp_path):
    from snakecls.deploy.predict import EnsemblePredictor

    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    info = json.loads((other / "bundle.json").read_text())
    info["label_facts"]["Lampropeltis elapsoides"]["venomous"] = True
    info["label_facts"]["Pantherophis guttatus"]["venomous"] = None
    (other / "bundle.json").write_text(json.dumps(without_seal(info)))
    for bundles in ([tiny_bundle, other], [other, tiny_bundle]):
        facts = EnsemblePredictor(bundles).info.label_facts
        assert [facts[label]["venomous"] for label in ("Lampropeltis elapsoides", "Pantherophis guttatus", "Micrurus fulvius")] == [True, None, True]
