"An empty word, as an unset variable of the shell gives one, is no path: it would mean the folder one stands in."
import pytest
import yaml
from conftest import draw_snake

from snakecls.core import UserError
from snakecls.data.given import given_photos
from snakecls.data.tables import load_table, load_unlabelled
from test_faults_folders import command

WORDS = ["predict _", "predict a.jpg _", "train --data _", "train --data=", "train _", "train --data photos --runs _", "train --data photos --logbook=", "check _", "check photos --output _", "evaluate --data _", "evaluate --model _",
         "evaluate --csv _", "evaluate --report _", "predict photos --csv _", "predict photos -m _", "export _", "app _", "runs --runs _", "ensemble a _", "ensemble a b --output _", "facts _", "review _",
         "review --corrections _", "publish _", "publish --space a/b --dry-run _", "demo _"]  # fmt: skip


@pytest.fixture
def here(tmp_path):
    for i in range(8):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        draw_snake(i).resize((64, 64)).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("words", WORDS)
def test_a_command_refuses_an_empty_word(words, here):
    code, out, err = command(*["" if word == "_" else word for word in words.split()], cwd=here)
    assert code == 2 and "is empty" in err and err.count("\n") == 1 and not out
    assert [entry.name for entry in here.iterdir()] == ["photos"]


@pytest.mark.parametrize("key", ["source", "root", "corrections", "facts"])
def test_an_experiment_refuses_an_empty_path(key, here):
    (here / "experiment.yaml").write_text(yaml.safe_dump({"data": {"source": "photos", key: ""}, "model": {"arch": "test_resnet", "weights": "none"}}))
    code, _, err = command("train", "experiment.yaml", cwd=here)
    assert code == 2 and f"data.{key}" in err and "is empty" in err and err.count("\n") == 1


@pytest.mark.parametrize("read", [load_table, load_unlabelled, lambda source: given_photos([source])], ids=["load_table", "load_unlabelled", "given_photos"])
def test_a_function_refuses_it_too(read, here, monkeypatch):
    monkeypatch.chdir(here)
    for source in ("", "  "):
        with pytest.raises(UserError, match="is empty"):
            read(source)


def test_a_text_may_be_empty(here):
    code, _, err = command("facts", "--model", "nowhere", "--title", "", cwd=here)
    assert code == 2 and "empty" not in err
