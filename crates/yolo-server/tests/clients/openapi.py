"""`/openapi.json` of the server at the first address, against the schema of OpenAPI 3.1 by openapi-spec-validator."""

import json
import sys
import urllib.request

from openapi_spec_validator import OpenAPIV31SpecValidator

with urllib.request.urlopen(f"http://{sys.argv[1]}/openapi.json", timeout=10) as answer:
    document = json.load(answer)
assert document["openapi"].startswith("3.1."), document["openapi"]
found = OpenAPIV31SpecValidator(document).iter_errors()
errors = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in found]
assert not errors, "\n".join(errors)
# It would see what is wrong: a response without a description is.
path = next(iter(document["paths"].values()))
operation = next(iter(path.values()))
next(iter(operation["responses"].values())).pop("description")
assert list(OpenAPIV31SpecValidator(document).iter_errors()), "the validator takes anything"
print(f"OpenAPI {document['openapi']}: {len(document['paths'])} paths are valid")
