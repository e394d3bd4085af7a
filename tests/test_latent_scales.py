"""What an int8 latent cache costs: a scale for each slice keeps the rotary part from spoiling the latent."""

from latent_scales import compare


def test_a_scale_for_each_slice_does_not_mind_how_large_the_rotary_part_is():
    small, large = compare(1.0), compare(16.0)
    assert large["per_slice"][1] < 1.2 * small["per_slice"][1]
    assert large["per_slice"][1] < large["per_row"][1] / 10
    assert small["per_slice"][1] <= small["per_row"][1]
