"""The diagnosis benchmark: does the audit know which networks will train, and why not?

    python -m benchmarks diagnosis --split reporting --baselines --repair     examine the cases and print the tables
    python -m benchmarks.diagnosis.truth                                      train what truth.json does not have yet
    python -m benchmarks.diagnosis.fit --write numdl/audit/calibration.json   the probability, from the fitting split

**Cases**, each made from its name and a seed:

    random        configurations drawn at random: five families, six makers, depths 2 to 100, rates over six decades
    planted       each finding of the audit alone, at several strengths, in healthy networks of each family
    reports       public reports of networks that did not train, told again, with the repair that was found
    autotrainer   5 to 30 dense layers of 5 units on circles and blobs
    healthy       the standard list: usual models, and controls that look sick and train

**Truth** (truth.json, by `truth`): every setting is trained with three seeds for its budget, and so is its repaired
twin; the held-out score's progress from chance to the twin's score decides. Labels are measured, never assumed: a
planted fault too weak to matter counts as healthy.

**Splits**: "fitting" is for choosing thresholds and coefficients, "reporting" for the numbers that are published. What
is in reporting has other families (recurrent networks drawn at random; Equinox, NNX and gated networks), other
activations, optimisers and data sets, and other strengths of every fault, planted in other networks.

**Baselines** (`baselines`): what the tools before this look at, on the same cases. Keras is not among the makers: no
extra of this project asks for it.

Files: `setting` (the records), `recipes` (what a network, data and optimiser are in a few words), `plain` and
`frameworks` (networks), `sets` (data), `scores` (losses, held-out scores), `drawing` (weights), `faults*` and `bases`
(what is planted in what), `training`, `truth`, `baselines`, `worker` (examines), `score` (judges), `fit`.
"""
