import pytest

from altclip_train.configuration import check_configuration, nearest, unknown_key_hint

SCHEDULE = {"_target_": "altclip_train.optim.warmup_linear", "_partial_": True, "warmup_steps": 10}


def test_a_node_that_fits_its_constructor_passes():
    check_configuration({"stage": {"schedule": SCHEDULE, "list": [SCHEDULE]}})


def test_an_unknown_key_names_its_path_and_the_nearest_one():
    with pytest.raises(ValueError, match=r"stage.schedule.warmup_step is not taken .*did you mean 'warmup_steps'\?"):
        check_configuration({"stage": {"schedule": {**SCHEDULE, "warmup_step": 3}}})


@pytest.mark.parametrize("value", ["abc", True, 0.5])
def test_a_value_of_the_wrong_type_names_key_value_and_expected_type(value):
    with pytest.raises(ValueError, match=r"schedule.warmup_steps=.* expects int"):
        check_configuration({"schedule": {**SCHEDULE, "warmup_steps": value}})


def test_a_target_that_does_not_exist_names_the_key():
    with pytest.raises(ValueError, match=r"stage._target_=altclip_train.stages.Nothing cannot be imported"):
        check_configuration({"stage": {"_target_": "altclip_train.stages.Nothing"}})


def test_nearest_suggests_only_what_is_near():
    assert nearest("devcies", ["devices", "precision"]) == "; did you mean 'devices'?"
    assert nearest("zzz", ["devices", "precision"]) == ""


def test_unknown_key_hint_says_where_the_key_leaves_the_configuration():
    configuration = {"trainer": {"devices": 1, "precision": 32}, "seed": 0}
    assert unknown_key_hint("trainer.devcies", configuration).startswith(
        "trainer has no key 'devcies'; did you mean 'devices'?"
    )
    assert "the configuration has no key 'sede'; did you mean 'seed'?" in unknown_key_hint("sede", configuration)
