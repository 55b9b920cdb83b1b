"""Cost profiles: the costs of recomputing and swapping KV on an accelerator.

Imports neither vLLM nor torch:

    types       the parts of a profile
    check       conditions on its numbers
    load        JSON to profile and back; finds the profile for a node
    curve       seconds against size, between measured points and beyond them
    model       CostModel: the three costs that a scheduler asks for
    correction  online calibration by observed times; CorrectedCostModel
    decision    recompute or swap
    roofline    profiles from datasheet figures (datasheets), where none was measured
    generate    writes the modelled files of data/
    plot, show  a table, or a figure, of one profile

docs/cost-profiles.md has the sources of the numbers and their errors.
"""
