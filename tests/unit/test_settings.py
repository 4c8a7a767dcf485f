import pytest

from service.settings import Settings, SettingsError


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_mapping({}) == Settings()


def test_each_setting_is_read_from_its_variable():
    settings = Settings.from_mapping(
        {
            "MCD_MODEL": "runs/x/artifact",
            "MCD_WORKERS": "3",
            "MCD_MAX_BODY_BYTES": "2000",
            "MCD_MAX_PIXELS": "784",
            "PATH": "/bin",
        }
    )
    assert settings == Settings(model="runs/x/artifact", workers=3, max_body_bytes=2000, max_pixels=784)


def test_unknown_variables_with_our_prefix_are_ignored():
    assert Settings.from_mapping({"MCD_SERVICE_HOST": "10.0.0.1", "MCD_DATA_DIR": "/data"}) == Settings()


def test_an_empty_variable_keeps_the_default():
    assert Settings.from_mapping({"MCD_WORKERS": " "}).workers == 1


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_invalid_value_is_refused_naming_the_variable(value):
    with pytest.raises(SettingsError, match=rf"MCD_WORKERS: .*got '{value}'") as refusal:
        Settings.from_mapping({"MCD_WORKERS": value})
    assert "\n" not in str(refusal.value)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().workers = 2
