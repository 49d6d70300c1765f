"""What MLServer runs."""

import models
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        self.network = models.load(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answer = models.predict(self.network, NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output(models.SIGNATURES[self.name].output, answer)
        return InferenceResponse(model_name=self.name, outputs=[output])
