import torch

from mmlens.engine import PlainRuns
from mmlens.interventions import HeadMask
from mmlens.metrics import as_metric
from tests.engine.build import random_masks, tiny_model, tiny_sample


def test_equals_one_run_per_mask() -> None:
    model = tiny_model(n_kv=2)
    inputs, metric = tiny_sample(model), as_metric("logit_diff")
    masks = torch.cat([random_masks(4), torch.ones(1, 3, 4, dtype=torch.bool)])
    values = PlainRuns(model, inputs, metric=metric, baseline="zero", batch_size=3)(masks)
    for mask, value in zip(masks, values, strict=True):
        with torch.no_grad():
            run = model.run(inputs, [HeadMask(mask=mask, baseline="zero")], strict=False)
        torch.testing.assert_close(metric(run.logits, inputs)[0].double(), value, atol=1e-5, rtol=0)
    assert float(values.std()) > 0.01


def test_runs_the_models_own_hooks() -> None:
    model = tiny_model()
    runs = PlainRuns(model, tiny_sample(model), metric=as_metric("logit"))
    masks = random_masks(2)
    clean = runs(masks)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 0 * z)]):
        assert float((runs(masks) - clean).abs().min()) > 1e-3
