"""The description of the service, /docs.json."""

from service.schemas.answers import Answer
from service.schemas.parameters import Parameters


def test_the_description_matches_the_answers(client, served):
    document = client.get("/docs.json").json()
    assert document["openapi"] == "3.1.0"
    parameters = {one["name"] for one in document["paths"]["/predict"]["post"]["parameters"]}
    assert parameters == set(Parameters.model_fields)
    operation = document["paths"]["/predict"]["post"]
    example = operation["responses"]["200"]["content"]["application/json"]["example"]
    assert (
        client.post("/predict", json=operation["requestBody"]["content"]["application/json"]["example"]).json()
        == example
    )
    assert Answer.model_validate(example).label in served.artifact.classes
    assert len(example["probabilities"]) == len(served.artifact.classes)
    inference = document["paths"]["/v2/models/mcd/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert client.post("/v2/models/mcd/infer", json=inference["example"]).status_code == 200
