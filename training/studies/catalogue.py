"""All studies by name, in the order of the chapter's questions."""

from training.studies import activations, chapter, dropconnect, epochs, noise, rates, test_time, weight_decay
from training.studies.study import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (chapter, rates, epochs, activations, test_time, weight_decay, dropconnect, noise)
}
