import pytest
import torch
from biflownets import make_biflownet, make_sample, predict

from voxdiff.models.biflownet_3d import BiFlowNet3DModel
from voxdiff.models.volume_conditions import check_scalar_conditions

SCALARS = {"ventricles": {"place": 1, "mean": 20.0, "std": 5.0}, "age": {"place": 0, "mean": 50.0, "std": 10.0}}


def moved(model, first, second):
    return float((predict(model, make_sample(), **first) - predict(model, make_sample(), **second)).abs().max())


def test_each_label_moves_the_output_and_none_is_a_label_of_its_own():
    model = make_biflownet(null_condition=True)
    results = [predict(model, make_sample(), label=label) for label in (-1, 0, 1, 2)]
    for index, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-3 for other in results[index + 1 :])
    assert model.class_embedding.num_embeddings == 4 and make_biflownet().class_embedding.num_embeddings == 3


def test_each_scalar_moves_the_output_and_absent_is_not_the_mean():
    model = make_biflownet(optional_scalars=True, scalar_conditions=SCALARS)
    mean = {"scalars": torch.tensor([[50.0, 20.0]])}
    for other in ([60.0, 20.0], [50.0, 30.0], [torch.nan, 20.0], [50.0, torch.nan]):
        assert moved(model, mean, {"scalars": torch.tensor([other])}) > 1e-3


def test_all_scalars_together_may_be_absent_with_the_null_label():
    model = make_biflownet(null_condition=True, scalar_conditions=SCALARS)
    given, absent = torch.tensor([[50.0, 20.0]]), torch.full((1, 2), torch.nan)
    assert moved(model, {"scalars": given, "label": -1}, {"scalars": absent, "label": -1}) > 1e-3
    labels = torch.tensor([1, -1])
    together = model(make_sample(batch=2), 417, labels, torch.cat([given, absent])).sample
    alone = model(make_sample(batch=2)[1:], 417, labels[1:], absent).sample
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_scalars_are_standardised_in_their_places(tmp_path):
    model = make_biflownet(scalar_conditions=SCALARS)
    plain = make_biflownet(scalar_conditions={name: {**entry, "mean": 0, "std": 1} for name, entry in SCALARS.items()})
    plain.load_state_dict(model.state_dict())
    result = predict(model, make_sample(), scalars=torch.tensor([[70.0, 10.0]]))
    torch.testing.assert_close(result, predict(plain, make_sample(), scalars=torch.tensor([[2.0, -2.0]])))
    whole = make_biflownet(scalar_conditions={"age": {"place": 0, "mean": 50.5, "std": 2.5}})
    ages = torch.tensor([[42]])
    assert torch.equal(predict(whole, make_sample(), scalars=ages), predict(whole, make_sample(), scalars=ages.float()))
    model.save_pretrained(tmp_path)
    again = BiFlowNet3DModel.from_pretrained(tmp_path)
    assert again.scalar_names == model.scalar_names == ["age", "ventricles"]
    assert torch.equal(predict(again, make_sample(), scalars=torch.tensor([[70.0, 10.0]])), result)


def test_large_scalars_survive_half_precision():
    model = make_biflownet(scalar_conditions={"volume": {"place": 0, "mean": 1.2e6, "std": 1e3}}).bfloat16()
    sample = make_sample().bfloat16()
    results = [predict(model, sample, scalars=torch.tensor([[1.2e6 + offset]])) for offset in (0, 1e3)]
    assert (results[0] - results[1]).abs().max() > 1e-2


def test_a_new_class_table_leaves_the_rest(tmp_path):
    model = make_biflownet(null_condition=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_class_embedding(5)
    assert model.config["num_class_embeds"] == 5
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if key != "class_embedding.weight")
    rows, old_rows = after["class_embedding.weight"], before["class_embedding.weight"]
    assert rows.shape == (6, 24) and torch.equal(rows[5], old_rows[3])
    assert model.class_embedding.weight.requires_grad
    assert moved(model, {"label": 3}, {"label": 4}) > 1e-3
    model.save_pretrained(tmp_path)
    again = BiFlowNet3DModel.from_pretrained(tmp_path)
    assert torch.equal(predict(again, make_sample(), label=4), predict(model, make_sample(), label=4))


def test_rows_of_known_classes_are_copied_and_the_others_drawn():
    model = make_biflownet(null_condition=True)
    old = model.class_embedding.weight.detach().clone()
    model.reset_class_embedding(3, kept={0: 2, 2: 0})
    rows = model.class_embedding.weight.detach()
    assert torch.equal(rows[[0, 2, 3]], old[[2, 0, 3]])
    assert not torch.isclose(rows[1], old).any()
    for kept in ({3: 0}, {0: 3}, {0: -1}):
        with pytest.raises(ValueError, match="give new labels from 0 to 2 -> old ones from 0 to 2"):
            model.reset_class_embedding(3, kept=kept)


def test_new_rows_have_the_size_of_the_old_ones():
    model = make_biflownet(num_class_embeds=200)
    torch.nn.init.normal_(model.class_embedding.weight, mean=3, std=0.1)
    model.reset_class_embedding(300, generator=torch.Generator().manual_seed(0))
    rows = model.class_embedding.weight.detach()
    assert abs(float(rows.mean()) - 3) < 0.02 and abs(float(rows.std()) - 0.1) < 0.01
    with pytest.raises(ValueError, match="at least 1"):
        model.reset_class_embedding(0)
    with pytest.raises(ValueError, match="no class table"):
        make_biflownet(num_class_embeds=None).reset_class_embedding(2)


@pytest.mark.parametrize(
    "config, labels, message",
    [
        ({"num_class_embeds": None}, [0], "given to an unconditional model"),
        ({}, None, "got no class_labels; pass one label from 0 to 2 for each of the 1 samples"),
        ({}, [3], "label is 3; pass one label from 0 to 2"),
        ({}, [-1], "label is -1; pass one label from 0 to 2"),
        ({"null_condition": True}, [-2], "label is -2; pass one label from -1 to 2"),
        ({}, [0, 1], r"shape \(2,\)"),
        ({}, [0.5], "whole numbers"),
    ],
)
def test_bad_labels_explain_themselves(config, labels, message):
    model = make_biflownet(**config)
    with pytest.raises(ValueError, match=message):
        model(make_sample(), 5, None if labels is None else torch.tensor(labels))


@pytest.mark.parametrize(
    "config, scalars, message",
    [
        ({}, [[1.0]], "without scalar conditions"),
        ({"scalar_conditions": SCALARS}, None, r"got none; pass a tensor \(1, 2\) of age, ventricles\.$"),
        ({"scalar_conditions": SCALARS, "null_condition": True}, None, "NaN where absent"),
        ({"scalar_conditions": SCALARS, "optional_scalars": True}, None, "NaN where absent"),
        (
            {"scalar_conditions": SCALARS, "null_condition": True},
            [[1.0, torch.nan]],
            "trained with all or none of them",
        ),
        ({"scalar_conditions": SCALARS}, [[1.0]], r"shape \(1, 1\); pass a tensor \(1, 2\) of age, ventricles"),
        ({"scalar_conditions": SCALARS}, [[1.0, torch.nan]], "trained without absent scalars"),
        ({"scalar_conditions": SCALARS}, [[1.0, torch.inf]], "infinite"),
    ],
)
def test_bad_scalars_explain_themselves(config, scalars, message):
    model = make_biflownet(**config)
    with pytest.raises(ValueError, match=message):
        predict(model, make_sample(), scalars=None if scalars is None else torch.tensor(scalars))


@pytest.mark.parametrize(
    "conditions, message",
    [
        ({"age": {"place": 0, "mean": 0.0}}, "'age' is .* give place, mean and std"),
        ({"age": {"place": 0, "mean": 0.0, "std": 0.0}}, "positive"),
        ({"age": {"place": 1, "mean": 0.0, "std": 1.0}}, r"places \[1\]; number them from 0 to 0"),
    ],
)
def test_bad_scalar_configurations_raise(conditions, message):
    with pytest.raises(ValueError, match=message):
        check_scalar_conditions(conditions)
