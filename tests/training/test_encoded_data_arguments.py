import pytest

from voxdiff.training.encoded_data_arguments import EncodedDataArguments


def check(**options):
    arguments = EncodedDataArguments(**options)
    arguments.check_origin(of_files=["spacing"], of_data=["split", "spacing"], example="mr")
    return arguments


def test_latents_alone_are_an_origin():
    assert check(latents_dir="latents").are_encoded
    assert not check(cohort="mr", num_subjects=0).are_encoded


def test_none_is_not_zero_subjects():
    assert check(cohort="mr", num_subjects=0).number_of_subjects == 0
    assert check(cohort="mr").number_of_subjects == 1000


def test_files_become_volumes_as_asked():
    processor = check(train_data_dir="x", spacing="1,1,2", intensity="window", low=-100, high=100).make_processor(
        (8, 8, 4)
    )
    assert (processor.spacing, processor.size, processor.low) == ((1.0, 1.0, 2.0), (8, 8, 4), -100)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--cohort mr for the simulated"),
        ({"train_data_dir": "x", "cohort": "mr"}, "were both given"),
        ({"cohort": "mr", "spacing": "1"}, "--spacing belongs to --train_data_dir"),
        ({"train_data_dir": "x", "num_subjects": 3}, "--num_subjects belongs to --cohort"),
        ({"latents_dir": "x", "split": "test"}, "--split was decided when the latents were encoded"),
        ({"cohort": "mr", "skip_bad_files": True}, "--skip_bad_files belongs to --train_data_dir"),
    ],
)
def test_contradictions_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(**options)
