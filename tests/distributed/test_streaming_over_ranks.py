"""Two ranks that train by streaming draw other samples and keep in step."""

from __future__ import annotations

import pytest

from tests.distributed.test_elastic_resume import record
from tests.workspace import BATCH, Workspace

pytestmark = pytest.mark.distributed

STEPS = 6


def test_ranks_draw_other_samples_and_take_the_same_number_of_steps(workspace: Workspace):
    shard, keys = workspace.damaged_texts(range(0, 40, 9), 40), workspace.new_directory()
    run = workspace.run(
        *["stage=teacher", "data.mode=streaming", f"data.parallel_texts=[{{urls: {shard}}}]", "data.val_texts=[]"],
        *["data.num_workers=1", "data.max_bad_fraction=0.5", f"trainer.max_steps={STEPS}", "trainer.devices=2"],
        record(keys),
    )
    parts = [(keys / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    assert [[len(line.split()) - 1 for line in part] for part in parts] == [[BATCH // 2] * STEPS] * 2
    assert parts[0] != parts[1]
    assert run.metrics("data/skipped/caption_json")[STEPS - 1] > 0
