from mutations import MUTATIONS, misfits


def test_every_mutation_still_finds_its_text_and_its_tests() -> None:
    assert [problem for mutation in MUTATIONS for problem in misfits(mutation)] == []
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20
