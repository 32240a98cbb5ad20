"""Continued self-supervised training of an encoder on pictures without labels: ``python -m e2net.adapt``.

- ``run``: the whole job, from a config to an encoder's folder
- ``module``: the LightningModule: losses of a batch of crops, and what changes after each step
- ``networks``: student, teacher and Gram teacher, copies of one encoder
- ``heads``: what stands on tokens while it trains
- ``targets``: a teacher's logits made targets, against collapse
- ``recipe``: weights and schedules of a recipe
- ``crops``: crops of one picture for student and teacher
- ``masking``: which patches the student does not see
- ``pictures``: pictures without targets, from anywhere
- ``budget``: what a training will take, told before it starts
- ``follow``: what is looked at meanwhile, and which state is the best
- ``watch``: a watch on dense features that needs no labels
- ``probe``: what frozen features know of a small labelled set
- ``report``: curves, and features before and after
- ``output``: an encoder as a folder of Hugging Face's
"""
