import itertools

import torch

from voxdiff.pipelines.slice_stages import SliceStage, plan_stages
from voxdiff.pipelines.stage_batches import batch_stages, cut_context, cut_targets, slot_positions, write_targets

STAGES = [SliceStage(targets=(1, 4), context=(0, 2, 3)), SliceStage(targets=(5, 7), context=(0, 3, 6))]


def test_only_stages_of_one_wave_and_shape_share_a_batch():
    stages = plan_stages(90, stage_size=4, context_size=3, max_slices=7)
    batches = batch_stages(stages)
    assert sorted(itertools.chain(*batches), key=stages.index) == stages
    waves = [{stage.wave for stage in alike} for alike in batches]
    assert all(len(wave) == 1 for wave in waves) and [min(wave) for wave in waves] == sorted(map(min, waves))
    for alike in batches:
        assert len({(len(stage.targets), len(stage.context)) for stage in alike}) == 1
    assert len(batches) < len(stages)


def test_volumes_of_a_stage_follow_each_other_and_come_back_to_their_places():
    volumes = torch.arange(2 * 8.0).view(2, 1, 1, 1, 8)
    targets = cut_targets(STAGES, volumes)
    assert targets.flatten(1).tolist() == [[1, 4], [9, 12], [5, 7], [13, 15]]
    assert cut_context(STAGES, volumes).flatten(1).tolist() == [[0, 2, 3], [8, 10, 11], [0, 3, 6], [8, 11, 14]]
    rows = slot_positions(STAGES, torch.arange(8.0) / 2, batch=2)
    assert rows.tolist() == [[0, 1, 1.5, 0.5, 2]] * 2 + [[0, 1.5, 3, 2.5, 3.5]] * 2
    written = volumes.clone()
    write_targets(STAGES, -targets, written)
    assert written.flatten(1)[0].tolist() == [0, -1, 2, 3, -4, -5, 6, -7]


def test_a_stage_without_context_has_none():
    assert cut_context([SliceStage(targets=(0, 1))], torch.zeros(1, 1, 2, 2, 3)).shape == (1, 1, 2, 2, 0)
