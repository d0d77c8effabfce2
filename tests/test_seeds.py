"""Seeds that follow from others."""

from lawm_jax import seeds


def test_every_tuple_has_a_seed_of_its_own():
    tuples = [(), (0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (2, 1), (2, 1, 0), (2**31 - 1,)]
    derived = [seeds.derive(*numbers) for numbers in tuples]
    assert len(set(derived)) == len(tuples)
    assert all(0 <= seed < 2**31 for seed in derived)
    assert derived == [seeds.derive(*numbers) for numbers in tuples]
