"""The mutation suite's table fits the files that it changes."""

import pytest
from mutants import run

MUTANTS, CELLS = run.read_table()


def test_there_are_enough_mutants_of_names_of_their_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 65
    assert {mutant.tests for mutant in MUTANTS if not mutant.tests.startswith("tests/")} == set(CELLS)


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_mutation_is_of_code_that_is_there_once(file):
    sources = run.sources(run.ROOT / file)
    for mutant in MUTANTS:
        if mutant.file == file:
            found = sum(source.count(mutant.old) for source in sources)
            assert found == 1 and mutant.old != mutant.new, mutant.name


@pytest.mark.parametrize("name", CELLS)
def test_the_cells_are_there(name):
    every = run.sources(run.ROOT / CELLS[name].file)
    imports = sum(map(run.only_imports, every))
    assert len(run.choose(CELLS[name], run.ROOT)) == imports + len(CELLS[name].lines)
