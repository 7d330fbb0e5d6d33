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


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "numpy.load",
        "webdataset.gopen",
        "lightning.fabric.utilities.cloud_io._load",
        "altclip_trainer.Thing",
        "tests.workspace.Workspace",
    ],
)
def test_a_target_outside_of_what_training_is_built_of_is_refused(target: str):
    with pytest.raises(ValueError, match=rf"callbacks.x._target_={target} is none of altclip_train, torch.optim"):
        check_configuration({"callbacks": {"x": {"_target_": target}}})


@pytest.mark.parametrize("target", ["altclip_train.training.facts.version", "altclip_train.files.Path"])
def test_a_target_cannot_reach_through_a_module_to_what_it_imports(target: str):
    with pytest.raises(ValueError, match=r"is not defined there, but comes from (importlib|pathlib)"):
        check_configuration({"x": {"_target_": target}})


@pytest.mark.parametrize("target", ["altclip_train.files.os.system", "altclip_train.training.facts.subprocess"])
def test_a_target_is_no_module_and_nothing_inside_one_that_is_imported(target: str):
    with pytest.raises(ValueError, match=r"cannot be imported|is not defined there"):
        check_configuration({"x": {"_target_": target}})


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.LinearLR",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.plugins.io.TorchCheckpointIO",
    ],
)
def test_what_training_is_built_of_may_be_named(target: str):
    check_configuration({"x": {"_target_": target}})


def test_modules_of_ones_own_may_be_named_once_they_are_listed():
    check_configuration({"x": {"_target_": "tests.faults.injections.Sleep"}}, own_modules=["tests"])
